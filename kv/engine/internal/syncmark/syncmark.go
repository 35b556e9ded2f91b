// Package syncmark keeps the promise of Sync honest over a restart: a small file says up to where
// an engine's log was synced, so that a log found shorter than that is damage and not an early end.
//
// Log formats tell a torn tail from damage as long as something valid lies behind the damage.
// Damage to the last record is the case they cannot tell, and that record may have been synced, and
// the raft log truncated because of it.
//
// The mark is written after each sync and not synced itself: after a power loss it may say too
// little, never too much. Both engine backends use it.
package syncmark

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
)

// Name of the mark's file in the engine's directory.
const Name = "SYNCED"

// Part of the on-disk format; do not change. Two slots in pages of their own, written in turn:
//
//	| magic "SMRK" | crc u32 | commit u64 | position u64 | clean u64 |
const (
	magic   = "SMRK"
	slotLen = 32
	spacing = 4096
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// State is what the mark says: the number of the last commit that was synced, and the place in the
// log behind it, for engines that know one. Clean means that the engine was closed there.
type State struct {
	Commit, Position uint64
	Clean            bool
}

// File is what the mark needs of a file.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Sync() error
}

// Mark is an open mark file. Safe for concurrent use.
type Mark struct {
	f  File
	mu struct {
		sync.Mutex
		state State
		slot  int64
	}
}

// Open reads the mark in f. Without a valid slot nothing is promised, which is not an error.
func Open(f File) *Mark {
	m := &Mark{f: f}
	for slot := range int64(2) {
		var b [slotLen]byte
		if _, err := f.ReadAt(b[:], slot*spacing); err != nil {
			continue
		}
		if string(b[:4]) != magic ||
			crc32.Checksum(b[8:], castagnoli) != binary.LittleEndian.Uint32(b[4:]) {
			continue
		}
		s := State{
			Commit: binary.LittleEndian.Uint64(b[8:]), Position: binary.LittleEndian.Uint64(b[16:]),
			Clean: b[24] == 1,
		}
		if s.Commit >= m.mu.state.Commit {
			m.mu.state, m.mu.slot = s, slot
		}
	}
	return m
}

// State returns what the mark says.
func (m *Mark) State() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.state
}

// Set writes the mark. A durable one replaces both slots and is synced: for a state that must not
// stand beside an older one, such as that of Open after a clean close.
func (m *Mark) Set(s State, durable bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.state = s
	b := make([]byte, slotLen)
	copy(b, magic)
	binary.LittleEndian.PutUint64(b[8:], s.Commit)
	binary.LittleEndian.PutUint64(b[16:], s.Position)
	if s.Clean {
		b[24] = 1
	}
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(b[8:], castagnoli))
	slots := 1
	if durable {
		slots = 2
	}
	for range slots {
		m.mu.slot ^= 1
		if _, err := m.f.WriteAt(b, m.mu.slot*spacing); err != nil {
			return fmt.Errorf("engine: sync mark: %w", err)
		}
	}
	if durable {
		if err := m.f.Sync(); err != nil {
			return fmt.Errorf("engine: sync mark: %w", err)
		}
	}
	return nil
}

// Close closes the file.
func (m *Mark) Close() error { return m.f.Close() }

// Group lets callers share syncs: a caller that comes while one runs is served by the next, which
// they share. A sync serves only those who came before it began.
type Group struct {
	turn sync.Mutex // held by the caller whose sync runs
	mu   struct {
		sync.Mutex
		next *turn
	}
}

type turn struct {
	done chan struct{}
	err  error
}

// Do runs f, or waits for another caller's run of it that began after Do was called.
func (g *Group) Do(f func() error) error {
	g.mu.Lock()
	t := g.mu.next
	lead := t == nil
	if lead {
		t = &turn{done: make(chan struct{})}
		g.mu.next = t
	}
	g.mu.Unlock()
	if !lead {
		<-t.done
		return t.err
	}
	g.turn.Lock()
	g.mu.Lock()
	g.mu.next = nil
	g.mu.Unlock()
	t.err = f()
	g.turn.Unlock()
	close(t.done)
	return t.err
}
