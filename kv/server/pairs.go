package server

import (
	"bytes"
	"sync"

	rpc "github.com/tinykv/tinykv/pkg/rpc/server"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// pairs allocates the pairs of an answer, several at a time: one by one, they are what the
// collector has most to do with. The memory is used again for a later answer if the call says when
// this one has been encoded (rpc.Room.Keep).
type pairs struct {
	// most is how many there may be.
	most, made int
	free       []kvrpcpb.KvPair
	room       []byte
	// list is what the pairs are gathered in, and chunk what free is cut from first, if the memory
	// is used again.
	list  []*kvrpcpb.KvPair
	chunk []kvrpcpb.KvPair
}

const (
	minChunk, maxChunk = 1 << 10, 32 << 10
	maxPairChunk       = 64
	// maxKept bounds the pairs of which the memory is kept: those of the usual answers.
	maxKept = 256
)

var pairsPool = sync.Pool{New: func() any { return new(pairs) }}

// newPairs makes room for at most so many pairs of the answer that has the room held, which may be
// nil.
func newPairs(held *rpc.Room, most int) *pairs {
	if !held.Keeps() || most > maxKept {
		return &pairs{most: most}
	}
	p := pairsPool.Get().(*pairs)
	if len(p.chunk) < most {
		p.chunk = make([]kvrpcpb.KvPair, most)
	}
	p.most, p.made, p.free = most, len(p.chunk), p.chunk
	held.Keep(p.release)
	return p
}

// release takes back the memory: nothing refers to the pairs any more.
func (p *pairs) release() {
	clear(p.list[:cap(p.list)])
	clear(p.chunk)
	p.list, p.room, p.free = p.list[:0], p.room[:0], nil
	pairsPool.Put(p)
}

func (p *pairs) next() *kvrpcpb.KvPair {
	if len(p.free) == 0 {
		p.free = make([]kvrpcpb.KvPair, max(min(2*p.made, maxPairChunk, p.most-p.made), 1))
		p.made += len(p.free)
	}
	pair := &p.free[0]
	p.free = p.free[1:]
	return pair
}

// copy copies b into a chunk that others share; large ones get memory of their own.
func (p *pairs) copy(b []byte) []byte {
	if len(b) == 0 || len(b) > maxChunk/4 {
		return bytes.Clone(b)
	}
	if cap(p.room)-len(p.room) < len(b) {
		p.room = make([]byte, 0, max(min(2*cap(p.room), maxChunk), minChunk, len(b)))
	}
	at := len(p.room)
	p.room = append(p.room, b...)
	return p.room[at:len(p.room):len(p.room)]
}
