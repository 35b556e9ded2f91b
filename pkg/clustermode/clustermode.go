// Package clustermode says which kind of data a cluster holds. It is chosen when the cluster is new
// and never changes: raw keys and the records of transactions in one key space would break region
// bounds, which clients of transactions decode.
package clustermode

import "fmt"

// Mode is a cluster's mode. The zero value is Raw.
type Mode string

const (
	// Raw clusters hold keys as clients write them.
	Raw Mode = "raw"
	// Txn clusters hold versions, locks and write records of transactions, under encoded keys.
	Txn Mode = "txn"
)

// Parse reads a mode; the empty name is Raw.
func Parse(name string) (Mode, error) {
	switch Mode(name) {
	case "", Raw:
		return Raw, nil
	case Txn:
		return Txn, nil
	}
	return "", fmt.Errorf("unknown mode %q: %s or %s", name, Raw, Txn)
}

// Refusal is what a request of the other kind is answered.
func (m Mode) Refusal() string {
	if m == Txn {
		return "this cluster is in mode txn: it serves transactions and refuses raw requests"
	}
	return "this cluster is in mode raw: it serves raw requests and refuses transactions"
}
