package cluster

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// History records operations on single keys for the linearizability checker. Safe for concurrent
// use.
type History struct {
	start time.Time
	mu    sync.Mutex
	ops   []porcupine.Operation
	next  int
	notes []string
	// OK counts operations with a known outcome, Swapped the compare-and-swaps among them that have
	// swapped.
	OK, Unknown, Swapped int
}

// NewHistory begins a history.
func NewHistory() *History { return &History{start: time.Now()} }

type opInput struct {
	kind  byte // 'g' get, 'p' put, 'd' delete, 's' swap
	key   string
	value string
	// expected is what a swap compares with; absent: there must be no value.
	expected string
	absent   bool
}

type opOutput struct {
	value   string
	found   bool
	unknown bool
	swapped bool
}

// Client is a fresh client id: an operation of unknown outcome uses its client up.
func (h *History) Client() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.next++
	return h.next
}

// Note keeps a remark about an operation; only the first few count.
func (h *History) Note(text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.notes) < 8 {
		h.notes = append(h.notes, text)
	}
}

// Notes returns the remarks.
func (h *History) Notes() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string{}, h.notes...)
}

// Known is the number of operations with a known outcome so far.
func (h *History) Known() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.OK
}

// Now is the time for the history's clock.
func (h *History) Now() int64 { return int64(time.Since(h.start)) }

// Get records a get that succeeded; failed ones say nothing.
func (h *History) Get(client int, key string, call int64, value []byte, found bool) {
	h.add(porcupine.Operation{
		ClientId: client, Input: opInput{kind: 'g', key: key}, Call: call,
		Output: opOutput{value: string(value), found: found}, Return: h.Now(),
	}, false)
}

// Put records a put or, without value, a delete; unknown ones may take effect at any later time.
func (h *History) Put(client int, key string, value []byte, del bool, call int64, unknown bool) {
	in := opInput{kind: 'p', key: key, value: string(value)}
	if del {
		in = opInput{kind: 'd', key: key}
	}
	ret := h.Now()
	if unknown {
		ret = int64(1) << 62
	}
	h.add(porcupine.Operation{
		ClientId: client, Input: in, Call: call, Output: opOutput{unknown: unknown}, Return: ret,
	}, unknown)
}

// Swap records a compare-and-swap: nil expected means no value. previous is nil if it found none.
func (h *History) Swap(
	client int, key string, expected, value []byte, call int64, previous []byte, swapped, unknown bool,
) {
	in := opInput{
		kind: 's', key: key, value: string(value), expected: string(expected),
		absent: expected == nil,
	}
	out, ret := opOutput{
		value: string(previous), found: previous != nil, swapped: swapped, unknown: unknown,
	}, h.Now()
	if unknown {
		ret = int64(1) << 62
	}
	h.add(porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: ret},
		unknown)
	if swapped && !unknown {
		h.mu.Lock()
		h.Swapped++
		h.mu.Unlock()
	}
}

func (h *History) add(op porcupine.Operation, unknown bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, op)
	if unknown {
		h.Unknown++
	} else {
		h.OK++
	}
}

type regState struct {
	value string
	found bool
}

var registerModel = porcupine.Model{
	Partition: func(ops []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[string][]porcupine.Operation{}
		for _, op := range ops {
			k := op.Input.(opInput).key
			byKey[k] = append(byKey[k], op)
		}
		var out [][]porcupine.Operation
		for _, ops := range byKey {
			out = append(out, ops)
		}
		return out
	},
	Init: func() any { return regState{} },
	Step: func(state, input, output any) (bool, any) {
		in, out, st := input.(opInput), output.(opOutput), state.(regState)
		switch in.kind {
		case 'p':
			return true, regState{in.value, true}
		case 'd':
			return true, regState{}
		case 's':
			return stepSwap(in, out, st)
		}
		return out.found == st.found && (!st.found || out.value == st.value), st
	},
	Equal: func(a, b any) bool { return a == b },
	DescribeOperation: func(input, output any) string {
		in, out := input.(opInput), output.(opOutput)
		switch {
		case in.kind == 'p':
			return fmt.Sprintf("put(%s,%s) unknown=%v", in.key, in.value, out.unknown)
		case in.kind == 'd':
			return fmt.Sprintf("delete(%s) unknown=%v", in.key, out.unknown)
		case in.kind == 's':
			return fmt.Sprintf("swap(%s, %q absent=%v -> %s) -> %v, was %q found=%v, unknown=%v",
				in.key, in.expected, in.absent, in.value, out.swapped, out.value, out.found,
				out.unknown)
		}
		return fmt.Sprintf("get(%s) -> %q found=%v", in.key, out.value, out.found)
	},
}

// stepSwap tells whether a compare-and-swap may have had an outcome in a state, and what it makes
// of it.
func stepSwap(in opInput, out opOutput, st regState) (bool, any) {
	next, swaps := st, st.found != in.absent && (in.absent || st.value == in.expected)
	if swaps {
		next = regState{in.value, true}
	}
	known := out.swapped == swaps && out.found == st.found && (!st.found || out.value == st.value)
	return out.unknown || known, next
}

// Check verifies that the history is linearizable; a verdict that cannot be reached in time fails
// too.
func (h *History) Check(t testing.TB) {
	t.Helper()
	h.mu.Lock()
	ops := append([]porcupine.Operation{}, h.ops...)
	h.mu.Unlock()
	res, info := porcupine.CheckOperationsVerbose(registerModel, ops, 60*time.Second)
	if res == porcupine.Ok {
		return
	}
	path := filepath.Join(os.TempDir(),
		fmt.Sprintf("tinykv-history-%d.html", time.Now().UnixNano()))
	if err := porcupine.VisualizePath(registerModel, info, path); err != nil {
		path = err.Error()
	}
	t.Errorf("history of %d operations is not linearizable: %s (picture: %s)", len(ops), res, path)
}
