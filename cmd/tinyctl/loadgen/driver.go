package loadgen

import (
	"context"
)

// Driver is one store under load. Its methods are called by many goroutines at once; each call
// returns only when the operation is done: a write is durable, a read is linearizable.
type Driver interface {
	// Name tells the driver's kind in results.
	Name() string
	Put(ctx context.Context, key, value []byte) error
	// Read returns the value, nil if there is no such key; the caller may change it.
	Read(ctx context.Context, key []byte) ([]byte, error)
	// Scan returns how many pairs it got, at most limit, from start on in key order.
	Scan(ctx context.Context, start []byte, limit int) (int, error)
	Delete(ctx context.Context, key []byte) error
	Close()
}

// Op is one kind of operation.
type Op int

// The operations.
const (
	OpPut Op = iota
	OpGet
	OpScan
	OpDelete
	opCount
)

func (o Op) String() string { return [opCount]string{"put", "get", "scan", "delete"}[o] }

// do carries out one operation.
func do(ctx context.Context, d Driver, op Op, key, value []byte, scanLimit int) error {
	var err error
	switch op {
	case OpPut:
		err = d.Put(ctx, key, value)
	case OpGet:
		_, err = d.Read(ctx, key)
	case OpScan:
		_, err = d.Scan(ctx, key, scanLimit)
	case OpDelete:
		err = d.Delete(ctx, key)
	}
	return err
}
