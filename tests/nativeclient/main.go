// Command nativeclient carries out operations for tests of other modules, which cannot link this
// one's client. Its argument is the placement service's address. It reads one operation in JSON a
// line, and writes one outcome a line, in any order.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/tinykv/tinykv/kv/client"
	"github.com/tinykv/tinykv/kv/client/txn"
)

// operation is one line of the input. A null Expected is no value; an operation of kind swap with a
// null Value deletes. A transfer moves Value, a number, from Key to Expected; a sum adds up the
// numbers of the keys from Key up to Expected.
type operation struct {
	ID uint64 `json:"id"`
	// get, put, delete, swap or scan; transfer or sum are transactions
	Kind     string `json:"kind"`
	Key      []byte `json:"key"`
	Value    []byte `json:"value"`
	Expected []byte `json:"expected"`
}

// outcome is one line of the output. Value is what a get or scan has found, or what a swap has
// found before it.
type outcome struct {
	ID      uint64 `json:"id"`
	Found   bool   `json:"found"`
	Value   []byte `json:"value"`
	Swapped bool   `json:"swapped"`
	Error   string `json:"error,omitempty"`
	// Unknown: the operation has failed, but may have been carried out.
	Unknown bool `json:"unknown"`
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: nativeclient ADDRESS")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

const opTimeout = 5 * time.Second

func run(addr string, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cl, err := client.Open(ctx, []string{addr}, client.Options{})
	if err != nil {
		return err
	}
	defer cl.Close()
	txns := txn.New(cl, cl.Placement())
	defer txns.Close()
	var mu sync.Mutex // guards out
	enc := json.NewEncoder(out)
	var wg sync.WaitGroup
	defer wg.Wait()
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var op operation
		if err := json.Unmarshal(lines.Bytes(), &op); err != nil {
			return err
		}
		wg.Add(1)
		// As many as the test has operations under way; each ends with its timeout.
		go func() {
			defer wg.Done()
			got := carryOut(cl, txns, &op)
			mu.Lock()
			defer mu.Unlock()
			_ = enc.Encode(got) // the test that does not read any more has ended
		}()
	}
	return lines.Err()
}

func carryOut(cl *client.Client, txns *txn.Client, op *operation) *outcome {
	ctx, cancel := context.WithTimeout(context.Background(), opTimeout)
	defer cancel()
	got := &outcome{ID: op.ID}
	var err error
	switch op.Kind {
	case "get":
		got.Value, got.Found, err = cl.Get(ctx, op.Key)
	case "put":
		err = cl.Put(ctx, op.Key, op.Value)
	case "delete":
		err = cl.Delete(ctx, op.Key)
	case "swap":
		got.Value, got.Swapped, err = cl.CompareAndSwap(ctx, op.Key, op.Expected, op.Value)
		got.Found = got.Value != nil
	case "scan":
		var pairs []client.KV
		pairs, err = cl.Scan(ctx, op.Key, append(append([]byte{}, op.Key...), 0), 2)
		for _, p := range pairs {
			got.Found, got.Value = true, p.Value
		}
	case "transfer":
		err = transfer(ctx, txns, op)
	case "sum":
		got.Value, err = sum(ctx, txns, op)
	default:
		err = errors.New("nativeclient: no such kind of operation: " + op.Kind)
	}
	if err != nil {
		got.Error, got.Unknown = err.Error(), client.IsUnknown(err) || txn.IsUnknown(err)
	}
	return got
}

// transfer tries once: a conflict is an error.
func transfer(ctx context.Context, txns *txn.Client, op *operation) error {
	amount, err := strconv.Atoi(string(op.Value))
	if err != nil {
		return err
	}
	t, err := txns.Begin(ctx)
	if err != nil {
		return err
	}
	for key, change := range map[string]int{string(op.Key): -amount, string(op.Expected): amount} {
		v, _, err := t.Get(ctx, []byte(key))
		if err != nil {
			return err
		}
		has, err := strconv.Atoi(string(v))
		if err != nil {
			return err
		}
		t.Set([]byte(key), strconv.AppendInt(nil, int64(has+change), 10))
	}
	return t.Commit(ctx)
}

func sum(ctx context.Context, txns *txn.Client, op *operation) ([]byte, error) {
	t, err := txns.Begin(ctx)
	if err != nil {
		return nil, err
	}
	pairs, err := t.Scan(ctx, op.Key, op.Expected, 0)
	if err != nil {
		return nil, err
	}
	total := 0
	for _, p := range pairs {
		n, err := strconv.Atoi(string(p.Value))
		if err != nil {
			return nil, err
		}
		total += n
	}
	return strconv.AppendInt(nil, int64(total), 10), nil
}
