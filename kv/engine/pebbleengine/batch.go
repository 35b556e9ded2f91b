package pebbleengine

import (
	"errors"

	"github.com/cockroachdb/pebble/v2"
)

type batch struct {
	b   *pebble.Batch
	err error
}

func (b *batch) note(err error) { b.err = errors.Join(b.err, err) }

func (b *batch) Put(key, value []byte) { b.note(b.b.Set(key, value, nil)) }
func (b *batch) Delete(key []byte)     { b.note(b.b.Delete(key, nil)) }

func (b *batch) DeleteRange(start, end []byte) {
	if string(start) < string(lowest) {
		start = lowest // the sentinel is not the caller's
	}
	if string(start) < string(end) {
		b.note(b.b.DeleteRange(start, end, nil))
	}
}

func (b *batch) Len() int { return int(b.b.Count()) }

func (b *batch) Size() int { return b.b.Len() }

func (b *batch) Reset() {
	b.b.Reset()
	b.err = nil
}
