package cluster

import (
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tinykv/tinykv/kv/raftstore"
	"github.com/tinykv/tinykv/kv/raftstore/snap"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// Network carries raft messages between the stores of a Cluster. Messages are marshalled, so that
// no memory is shared; they can be lost, delayed, doubled and cut off by partitions.
type Network struct {
	c       *Cluster
	Sent    atomic.Int64
	Dropped atomic.Int64
	Flipped atomic.Int64
	Snaps   atomic.Int64

	mu struct {
		sync.Mutex
		rng *rand.Rand
		// loss, duplicate are probabilities; delay is the longest.
		loss, duplicate float64
		flip            float64
		delay           time.Duration
		// side numbers the parts of a partition; messages between different parts are lost. nil:
		// none.
		side map[uint64]int
		// cut lists one-way cuts from -> to.
		cut    map[[2]uint64]bool
		hold   func(to uint64, m *rspb.RaftMessage) bool
		held   []heldMessage
		closed bool
	}
	wg sync.WaitGroup

	// gate is held, shared, while messages leave a store.
	gate sync.RWMutex
	tap  func(from uint64, m *rspb.RaftMessage)
}

// Freeze stops all sending until thaw is called: what the stores have promised to each other does
// not grow meanwhile.
func (n *Network) Freeze() (thaw func()) {
	n.gate.Lock()
	return n.gate.Unlock
}

// heldMessage waits for Release.
type heldMessage struct {
	to     uint64
	m      *rspb.RaftMessage
	arrive func()
}

// Hold keeps back the messages for which f is true when they are sent, until they are released. Nil
// ends the holding back of further messages.
func (n *Network) Hold(f func(to uint64, m *rspb.RaftMessage) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.hold = f
}

// Release delivers the held messages for which f is true, in the order in which they were sent, and
// tells how many.
func (n *Network) Release(f func(to uint64, m *rspb.RaftMessage) bool) int {
	n.mu.Lock()
	var now, kept []heldMessage
	for _, h := range n.mu.held {
		if f(h.to, h.m) {
			now = append(now, h)
		} else {
			kept = append(kept, h)
		}
	}
	n.mu.held = kept
	n.mu.Unlock()
	for _, h := range now {
		h.arrive()
	}
	return len(now)
}

// Held tells how many messages are kept back for which f is true.
func (n *Network) Held(f func(to uint64, m *rspb.RaftMessage) bool) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	count := 0
	for _, h := range n.mu.held {
		if f(h.to, h.m) {
			count++
		}
	}
	return count
}

// Tap shows every message that is sent to f. f is called while sending is not frozen.
func (n *Network) Tap(f func(from uint64, m *rspb.RaftMessage)) {
	n.gate.Lock()
	defer n.gate.Unlock()
	n.tap = f
}

func newNetwork(c *Cluster, seed uint64) *Network {
	n := &Network{c: c}
	n.mu.rng = rand.New(rand.NewPCG(seed, 77))
	n.mu.cut = map[[2]uint64]bool{}
	return n
}

// SetFaults sets the probabilities of loss and duplication and the longest delay.
func (n *Network) SetFaults(loss, duplicate float64, delay time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.loss, n.mu.duplicate, n.mu.delay = loss, duplicate, delay
}

// SetFlips sets the probability with which a bit of an entry flips on its way.
func (n *Network) SetFlips(p float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.flip = p
}

// Partition separates the stores into parts; stores that are in none are in a part of their own.
func (n *Network) Partition(parts ...[]uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.side = map[uint64]int{}
	for i, part := range parts {
		for _, id := range part {
			n.mu.side[id] = i + 1
		}
	}
}

// Cut loses messages from one store to another.
func (n *Network) Cut(from, to uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.cut[[2]uint64{from, to}] = true
}

// Heal ends partitions and cuts.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.side = nil
	clear(n.mu.cut)
}

// fate decides about one message: how many copies arrive, and when.
func (n *Network) fate(from, to uint64) (copies int, delay time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mu.closed || (n.mu.side != nil && n.mu.side[from] != n.mu.side[to]) ||
		n.mu.cut[[2]uint64{from, to}] {
		return 0, 0
	}
	if n.mu.rng.Float64() < n.mu.loss {
		return 0, 0
	}
	copies = 1
	if n.mu.rng.Float64() < n.mu.duplicate {
		copies = 2
	}
	if n.mu.delay > 0 {
		delay = time.Duration(n.mu.rng.Int64N(int64(n.mu.delay)))
	}
	return copies, delay
}

func (n *Network) close() {
	n.mu.Lock()
	n.mu.closed = true
	n.mu.Unlock()
	n.wg.Wait()
}

// endpoint is the transport of one store.
type endpoint struct {
	n    *Network
	from *Node
	life int64
}

var _ raftstore.Transport = (*endpoint)(nil)

// Send implements raftstore.Transport.
func (e *endpoint) Send(storeID uint64, msgs []*rspb.RaftMessage) {
	e.n.gate.RLock()
	defer e.n.gate.RUnlock()
	for _, m := range msgs {
		if e.from.life.Load() != e.life {
			return // the store has crashed
		}
		if e.n.tap != nil {
			e.n.tap(e.from.ID, m)
		}
		data, err := m.Marshal()
		if err == nil && e.n.damages() {
			data, err = e.n.damage(m, data)
		}
		if err != nil {
			e.n.c.t.Errorf("marshal raft message: %v", err)
			continue
		}
		snapshot := m.GetMessage().GetSnapshot() != nil
		copies, delay := e.n.fate(e.from.ID, storeID)
		if copies == 0 {
			e.n.Dropped.Add(1)
			if snapshot {
				go e.from.reportSnapshot(m.RegionId, m.ToPeer.Id, false)
			}
			continue
		}
		e.n.Sent.Add(1)
		for range copies {
			e.n.deliver(e.from, storeID, m, data, snapshot, delay)
		}
	}
}

// damages decides whether a message is to be damaged.
func (n *Network) damages() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.mu.flip > 0 && n.mu.rng.Float64() < n.mu.flip
}

// damage is the message with one bit flipped in the data of one of its entries, if it has any.
func (n *Network) damage(m *rspb.RaftMessage, data []byte) ([]byte, error) {
	bad := new(rspb.RaftMessage)
	if err := bad.Unmarshal(data); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	entries := m.GetMessage().GetEntries()
	for i := range entries {
		if size := len(entries[i].Data); size > 0 {
			bad.Message.Entries[i].Data[n.mu.rng.IntN(size)] ^= 1 << n.mu.rng.IntN(8)
			n.Flipped.Add(1)
			break
		}
	}
	return bad.Marshal()
}

func (n *Network) deliver(
	from *Node, to uint64, sent *rspb.RaftMessage, data []byte, snapshot bool, delay time.Duration,
) {
	n.mu.Lock()
	if n.mu.closed {
		n.mu.Unlock()
		return
	}
	arrive := n.arrival(from, to, data, snapshot)
	if n.mu.hold != nil && n.mu.hold(to, sent) {
		n.mu.held = append(n.mu.held, heldMessage{to, sent, func() { n.wg.Add(1); arrive() }})
		n.mu.Unlock()
		return
	}
	n.wg.Add(1)
	n.mu.Unlock()
	if delay == 0 && !snapshot {
		arrive()
		return
	}
	time.AfterFunc(delay, arrive)
}

// arrival hands a message to its store.
func (n *Network) arrival(from *Node, to uint64, data []byte, snapshot bool) func() {
	return func() {
		defer n.wg.Done()
		m := new(rspb.RaftMessage)
		if err := m.Unmarshal(data); err != nil {
			n.c.t.Errorf("unmarshal raft message: %v", err)
			return
		}
		var err error
		if snapshot {
			err = n.copySnapshot(from, to, m)
		}
		if err == nil {
			err = n.c.handleRaft(to, m)
		}
		if snapshot {
			if err == nil {
				n.Snaps.Add(1)
			}
			from.reportSnapshot(m.RegionId, m.ToPeer.Id, err == nil)
		}
	}
}

// copySnapshot moves the files of a raft snapshot as the Snapshot RPC would.
func (n *Network) copySnapshot(from *Node, to uint64, m *rspb.RaftMessage) error {
	var data rspb.RaftSnapshotData
	if err := data.Unmarshal(m.Message.Snapshot.Data); err != nil {
		return err
	}
	md := m.Message.Snapshot.Metadata
	key := snap.Key{RegionID: m.RegionId, Term: md.Term, Index: md.Index}
	dst := n.c.node(to)
	if dst == nil {
		return errors.New("no such store")
	}
	files, err := from.snapshots().OpenBuilt(key, data.Meta)
	if err != nil {
		return err
	}
	defer files.Close()
	recv, err := dst.snapshots().Receive(key, data.Meta)
	if err != nil || recv == nil {
		return err
	}
	defer recv.Close()
	if _, err := io.Copy(recv, files); err != nil {
		return err
	}
	return recv.Finish()
}
