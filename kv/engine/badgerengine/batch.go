package badgerengine

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/pkg/redact"
)

type opKind uint8

const (
	opPut opKind = iota
	opDelete
	opDeleteRange
)

type change struct {
	kind       opKind
	key, value []byte // of a range: start and end
}

// sumLen is the length of the checksum behind each stored value. The library's tables have none:
// without it, damage to a table would be served as data.
const sumLen = 4

func checksum(key, value []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value)
}

// unseal takes the checksum off a stored value.
func unseal(key, stored []byte) ([]byte, error) {
	n := len(stored) - sumLen
	if n < 0 || checksum(key, stored[:n]) != binary.LittleEndian.Uint32(stored[n:]) {
		return nil,
			fmt.Errorf("%w: checksum of key %v does not match", engine.ErrCorrupt, redact.Key(key))
	}
	return stored[:n], nil
}

// batch keeps its changes in one growing buffer.
type batch struct {
	ops  []change
	buf  []byte
	size int
	err  error
}

// add copies key and value behind each other. An old buffer that append leaves behind stays alive
// through the slices into it.
func (b *batch) add(kind opKind, key, value []byte) {
	if len(key) == 0 || key[0] == 0x00 || key[0] == '!' {
		b.err = fmt.Errorf("engine: key %v begins with a byte that badger cannot hold",
			redact.Key(key))
	}
	need := len(key) + len(value) + sumLen
	if cap(b.buf)-len(b.buf) < need {
		b.buf = make([]byte, 0, max(2*cap(b.buf), need, 512))
	}
	n := len(b.buf)
	b.buf = append(append(b.buf, key...), value...)
	if kind == opPut {
		b.buf = binary.LittleEndian.AppendUint32(b.buf, checksum(key, value))
	}
	k, v := n+len(key), len(b.buf)
	b.ops = append(b.ops, change{kind, b.buf[n:k:k], b.buf[k:v:v]})
	b.size += len(key) + len(value) + 32
}

func (b *batch) Put(key, value []byte) { b.add(opPut, key, value) }
func (b *batch) Delete(key []byte)     { b.add(opDelete, key, nil) }

func (b *batch) DeleteRange(start, end []byte) {
	if bytes.Compare(start, lowest) < 0 {
		start = lowest
	}
	if bytes.Compare(start, end) < 0 {
		if start[0] == '!' { // a bound may begin so; no key does
			start = []byte{'!' + 1}
		}
		b.add(opDeleteRange, start, end)
	}
}

func (b *batch) Len() int  { return len(b.ops) }
func (b *batch) Size() int { return b.size }

func (b *batch) Reset() {
	clear(b.ops)
	// The buffer is the library's now: it takes keys and values over into a list that another
	// goroutine copies into the memtable some time after Commit has returned.
	b.ops, b.buf, b.size, b.err = b.ops[:0], nil, 0, nil
}
