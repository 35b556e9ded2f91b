package loadgen

import (
	"context"

	"github.com/tinykv/tinykv/kv/client/txn"
)

// txnDriver loads a cluster of mode txn: each operation is a transaction of its own.
type txnDriver struct{ c *txn.Client }

// NewTxn makes a driver over a client that stays the caller's.
func NewTxn(c *txn.Client) Driver { return txnDriver{c} }

func (d txnDriver) Name() string { return "tinykv-txn" }

// commit has a transaction of one change happen. Another worker may write the key at the same time:
// then it begins again.
func (d txnDriver) commit(ctx context.Context, change func(t *txn.Txn)) error {
	return d.c.Run(ctx, func(t *txn.Txn) error {
		change(t)
		return nil
	})
}

func (d txnDriver) Put(ctx context.Context, key, value []byte) error {
	return d.commit(ctx, func(t *txn.Txn) { t.Set(key, value) })
}

func (d txnDriver) Read(ctx context.Context, key []byte) ([]byte, error) {
	value, _, err := d.c.Get(ctx, key)
	return value, err
}

func (d txnDriver) Scan(ctx context.Context, start []byte, limit int) (int, error) {
	t, err := d.c.Begin(ctx)
	if err != nil {
		return 0, err
	}
	pairs, err := t.Scan(ctx, start, nil, limit)
	return len(pairs), err
}

func (d txnDriver) Delete(ctx context.Context, key []byte) error {
	return d.commit(ctx, func(t *txn.Txn) { t.Delete(key) })
}

func (d txnDriver) Close() {}
