//go:build client85

package tikv

import "github.com/tikv/client-go/v2/txnkv/transaction"

func iterReverse(txn *transaction.KVTxn, before []byte) (iterator, error) {
	return txn.IterReverse(before, nil)
}

func commitTSOf(txn transaction.TxnProbe) uint64 { return txn.CommitTS() }
