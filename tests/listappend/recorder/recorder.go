// Package recorder runs transactions over lists and records them for package listappend.
package recorder

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tinykv/tinykv/kv/client/txn"
	"github.com/tinykv/tinykv/tests/listappend"
)

// Recorder runs transactions and keeps what its clients saw. Safe for concurrent use.
type Recorder struct {
	keys   [][]byte
	began  time.Time
	values atomic.Uint64
	mu     struct {
		sync.Mutex
		history []listappend.Txn
	}
}

// New makes a recorder of transactions over lists at keys.
func New(keys [][]byte) *Recorder { return &Recorder{keys: keys, began: time.Now()} }

func (r *Recorder) now() int64 { return int64(time.Since(r.began)) }

// kinds are the ways in which transactions are committed, side by side.
var kinds = []txn.Commits{txn.Fastest, txn.NoOnePhase, txn.TwoPhases}

// begin starts a transaction and its record.
func (r *Recorder) begin(
	ctx context.Context, cl *txn.Client, locking bool,
) (*txn.Txn, *listappend.Txn, error) {
	rec := &listappend.Txn{Begun: r.now(), Outcome: listappend.Unknown, Locking: locking}
	begin := cl.Begin
	if locking {
		begin = cl.BeginPessimistic
	}
	x, err := begin(ctx)
	if err != nil {
		return nil, nil, err
	}
	rec.Start = x.StartTS()
	return x, rec, nil
}

// end commits a transaction and keeps its record.
func (r *Recorder) end(ctx context.Context, x *txn.Txn, rec *listappend.Txn) error {
	err := x.Commit(ctx)
	switch {
	case err == nil:
		rec.Outcome, rec.Commit = listappend.Committed, x.CommitTS()
	case !txn.IsUnknown(err):
		rec.Outcome = listappend.Failed
	}
	rec.Ended = r.now()
	r.add(*rec)
	return err
}

// Run carries out one transaction of one to four steps. An error says that it has not happened, or
// may not have.
func (r *Recorder) Run(ctx context.Context, cl *txn.Client, rng *rand.Rand) error {
	locking := rng.IntN(4) == 0
	x, rec, err := r.begin(ctx, cl, locking)
	if err != nil {
		return err
	}
	x.SetCommits(kinds[rng.IntN(len(kinds))])
	at := rng.IntN(len(r.keys))
	for range 1 + rng.IntN(4) {
		if rng.IntN(3) > 0 { // else at the same key, or its neighbour
			at = rng.IntN(len(r.keys))
		}
		do := r.step
		if locking {
			do = r.lockedStep
		}
		if err := do(ctx, x, rec, r.keys[at], rng.IntN(2) == 0); err != nil {
			x.Rollback()
			return err
		}
		at = (at + rng.IntN(2)) % len(r.keys)
	}
	return r.end(ctx, x, rec)
}

// Append appends to one list.
func (r *Recorder) Append(ctx context.Context, cl *txn.Client, rng *rand.Rand) error {
	x, rec, err := r.begin(ctx, cl, false)
	if err != nil {
		return err
	}
	x.SetCommits(kinds[rng.IntN(len(kinds))])
	if err := r.step(ctx, x, rec, r.keys[rng.IntN(len(r.keys))], true); err != nil {
		x.Rollback()
		return err
	}
	return r.end(ctx, x, rec)
}

// LockAndRead locks and reads two lists, one after the other, and changes none.
func (r *Recorder) LockAndRead(ctx context.Context, cl *txn.Client, rng *rand.Rand) error {
	x, rec, err := r.begin(ctx, cl, true)
	if err != nil {
		return err
	}
	at := rng.IntN(len(r.keys) - 1)
	for _, k := range r.keys[at : at+2] {
		if err := r.lockedStep(ctx, x, rec, k, false); err != nil {
			x.Rollback()
			return err
		}
	}
	return r.end(ctx, x, rec)
}

// step reads a list, and appends to it.
func (r *Recorder) step(
	ctx context.Context, x *txn.Txn, rec *listappend.Txn, key []byte, appends bool,
) error {
	data, _, err := x.Get(ctx, key)
	if err != nil {
		return err
	}
	list, err := decode(data)
	if err != nil {
		return err
	}
	rec.Ops = append(rec.Ops, listappend.Read(string(key), list...))
	if appends {
		v := r.values.Add(1)
		x.Set(key, binary.BigEndian.AppendUint64(data, v))
		rec.Ops = append(rec.Ops, listappend.Append(string(key), v))
	}
	return nil
}

// lockedStep is step at a key that is locked first. All that is locked stays as it is until the
// end, so what was read is what was there at the newest lock's timestamp.
func (r *Recorder) lockedStep(
	ctx context.Context, x *txn.Txn, rec *listappend.Txn, key []byte, appends bool,
) error {
	values, err := x.LockKeys(ctx, key)
	if err != nil {
		return err
	}
	rec.Start = x.ForUpdateTS()
	data := values[string(key)]
	if own, found, known := x.Own(key); known && found {
		data = own
	}
	list, err := decode(data)
	if err != nil {
		return err
	}
	rec.Ops = append(rec.Ops, listappend.Read(string(key), list...))
	if appends {
		v := r.values.Add(1)
		x.Set(key, binary.BigEndian.AppendUint64(bytes.Clone(data), v))
		rec.Ops = append(rec.Ops, listappend.Append(string(key), v))
	}
	return nil
}

func decode(data []byte) (list []uint64, err error) {
	if len(data)%8 != 0 {
		return nil, fmt.Errorf("%x is no list", data)
	}
	for ; len(data) > 0; data = data[8:] {
		list = append(list, binary.BigEndian.Uint64(data))
	}
	return list, nil
}

func (r *Recorder) add(t listappend.Txn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.history = append(r.mu.history, t)
}

// Look reads all lists in one transaction, by a scan.
func (r *Recorder) Look(ctx context.Context, cl *txn.Client) error {
	rec := listappend.Txn{Begun: r.now()}
	x, err := cl.Begin(ctx)
	if err != nil {
		return err
	}
	rec.Start = x.StartTS()
	got := map[string][]byte{}
	first, last := r.keys[0], r.keys[len(r.keys)-1]
	pairs, err := x.Scan(ctx, first, append(append([]byte{}, last...), 0), 0)
	if err != nil {
		return err
	}
	for _, kv := range pairs {
		got[string(kv.Key)] = kv.Value
	}
	for _, k := range r.keys {
		list, err := decode(got[string(k)])
		if err != nil {
			return err
		}
		rec.Ops = append(rec.Ops, listappend.Read(string(k), list...))
	}
	rec.Ended = r.now()
	r.add(rec)
	return nil
}

// Committed is how many transactions have changed something, as far as is known.
func (r *Recorder) Committed() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.mu.history {
		if t.Outcome == listappend.Committed && t.Commit != 0 {
			n++
		}
	}
	return n
}

// Check judges what was recorded.
func (r *Recorder) Check() listappend.Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	return listappend.Check(r.mu.history)
}

// Explain shows the transactions that the first anomalies of a report name.
func (r *Recorder) Explain(report listappend.Report) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out strings.Builder
	for _, a := range report.Anomalies[:min(len(report.Anomalies), 5)] {
		fmt.Fprintf(&out, "%s\n", a)
		for _, n := range a.Txns {
			fmt.Fprintf(&out, "  %d: %s\n", n, r.mu.history[n])
		}
	}
	return out.String()
}
