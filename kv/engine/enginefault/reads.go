package enginefault

import (
	"fmt"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/faultfs"
)

func stepRead(ctl *faultfs.Controller, kind string) error {
	if err := ctl.StepRead("engine", kind, ""); err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	return nil
}

func (f *faulty) Get(key []byte) ([]byte, bool, error) {
	if err := stepRead(f.ctl, "get"); err != nil {
		return nil, false, err
	}
	return f.Engine.Get(key)
}

func (f *faulty) ApproximateSize(start, end []byte) (uint64, error) {
	if err := stepRead(f.ctl, "size"); err != nil {
		return 0, err
	}
	return f.Engine.ApproximateSize(start, end)
}

func (f *faulty) NewSnapshot() engine.Snapshot {
	return &faultySnapshot{f.Engine.NewSnapshot(), f.ctl}
}

type faultySnapshot struct {
	engine.Snapshot
	ctl *faultfs.Controller
}

func (s *faultySnapshot) Get(key []byte) ([]byte, bool, error) {
	if err := stepRead(s.ctl, "get"); err != nil {
		return nil, false, err
	}
	return s.Snapshot.Get(key)
}

func (s *faultySnapshot) NewIterator(lower, upper []byte) engine.Iterator {
	return &faultyIterator{Iterator: s.Snapshot.NewIterator(lower, upper), ctl: s.ctl}
}

// faultyIterator is invalid from the operation on that failed.
type faultyIterator struct {
	engine.Iterator
	ctl *faultfs.Controller
	err error
}

func (it *faultyIterator) do(kind string, move func()) {
	if it.err == nil {
		it.err = stepRead(it.ctl, kind)
	}
	if it.err == nil {
		move()
	}
}

func (it *faultyIterator) First()            { it.do("seek", it.Iterator.First) }
func (it *faultyIterator) Last()             { it.do("seek", it.Iterator.Last) }
func (it *faultyIterator) SeekGE(key []byte) { it.do("seek", func() { it.Iterator.SeekGE(key) }) }
func (it *faultyIterator) SeekLT(key []byte) { it.do("seek", func() { it.Iterator.SeekLT(key) }) }
func (it *faultyIterator) Next()             { it.do("next", it.Iterator.Next) }
func (it *faultyIterator) Prev()             { it.do("next", it.Iterator.Prev) }
func (it *faultyIterator) Valid() bool       { return it.err == nil && it.Iterator.Valid() }

func (it *faultyIterator) Err() error {
	if it.err != nil {
		return it.err
	}
	return it.Iterator.Err()
}
