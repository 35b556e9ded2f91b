// Package raftstorage is the replicated storage: it turns reads and writes into messages to the
// peers of a raftstore.
package raftstorage

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftstore"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/stages"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/pkg/trace"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

// Storage implements storage.Storage over a raftstore.
type Storage struct {
	store   *raftstore.Store
	engine  engine.Engine
	timeout time.Duration
	times   *times
	others  storage.Others // nil: there are none
}

var (
	_ storage.Storage      = (*Storage)(nil)
	_ storage.LocalGetter  = (*Storage)(nil)
	_ storage.LocalReader  = (*Storage)(nil)
	_ storage.AsyncWriter  = (*Storage)(nil)
	_ storage.Splitter     = (*Storage)(nil)
	_ storage.Comparer     = (*Storage)(nil)
	_ storage.Conditional  = (*Storage)(nil)
	_ storage.BoundStorage = (*Storage)(nil)

	_ storage.BoundRangeDeleter = (*Storage)(nil)
	_ storage.Expirer           = (*Storage)(nil)
	_ storage.Destroyer         = (*Storage)(nil)
)

// New returns a storage; timeout bounds requests whose context has no deadline.
func New(store *raftstore.Store, e engine.Engine, timeout time.Duration) *Storage {
	return &Storage{store: store, engine: e, timeout: timeout, times: newTimes(store.Millis)}
}

func header(c *kvrpcpb.Context) message.Header {
	return message.Header{
		RegionID: c.GetRegionId(), Peer: c.GetPeer(), Epoch: c.GetRegionEpoch(), Term: c.GetTerm(),
	}
}

func (s *Storage) checkContext(c *kvrpcpb.Context) error {
	if id := c.GetClusterId(); id != 0 && id != s.store.ClusterID() {
		return &regionerr.ClusterNotMatchError{Request: id, Actual: s.store.ClusterID()}
	}
	if c == nil || c.RegionId == 0 || c.Peer == nil || c.RegionEpoch == nil {
		return &regionerr.InvalidError{
			Reason: "the request's context needs region_id, region_epoch and peer",
		}
	}
	return nil
}

// Get implements storage.Storage: with a lease it reads on the caller's goroutine.
func (s *Storage) Get(
	ctx context.Context, c *kvrpcpb.Context, cf engine.CF, key []byte,
) ([]byte, bool, error) {
	rec := trace.From(ctx)
	end := rec.Begin("try to read under the lease")
	value, found, ok, err := s.GetLocal(c, cf, key)
	if end(); ok {
		return value, found, err
	}
	r, _, err := s.confirmed(ctx, header(c), key)
	if err != nil {
		return nil, false, err
	}
	defer r.Close()
	defer rec.Begin("read")()
	return r.Get(cf, key)
}

// GetLocal implements storage.LocalGetter: it answers while the lease holds, and refuses what is
// not for this store.
func (s *Storage) GetLocal(
	c *kvrpcpb.Context, cf engine.CF, key []byte,
) (value []byte, found, ok bool, err error) {
	if err := s.checkContext(c); err != nil {
		return nil, false, true, err
	}
	local, err := s.store.LocalRead(header(c), key)
	if err != nil || local == nil {
		return nil, false, err != nil, err
	}
	if local.Region.ExpiryFloor > 0 {
		return s.getLiving(local, cf, key)
	}
	if value, found, err = s.engine.Get(engine.DataKey(cf, key)); err != nil {
		s.store.ReadFailed(c.RegionId, err)
	}
	local.Note(1, len(key)+len(value))
	return value, found, err != nil || local.Valid(), err
}

// Reader implements storage.Storage.
func (s *Storage) Reader(
	ctx context.Context, c *kvrpcpb.Context, key []byte,
) (storage.Reader, error) {
	r, _, err := s.read(ctx, c, key)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// read returns a view, and the term in which this store led the region at that moment; 0 if it did
// not any more.
func (s *Storage) read(
	ctx context.Context, c *kvrpcpb.Context, key []byte,
) (*storage.View, uint64, error) {
	if err := s.checkContext(c); err != nil {
		return nil, 0, err
	}
	h := header(c)
	local, err := s.store.LocalRead(h, key)
	if err != nil {
		return nil, 0, err
	}
	if local != nil {
		// The lease must still hold when the snapshot exists; afterwards the snapshot stands for
		// itself.
		var at uint64
		if local.Region.ExpiryFloor > 0 {
			at = s.times.ofReader(h.RegionID)
		}
		snap := s.engine.NewSnapshot()
		if local.Valid() {
			return s.view(snap, local.Region, at), local.Term(), nil
		}
		snap.Close()
	}
	return s.confirmed(ctx, h, key)
}

// ReadLocal implements storage.LocalReader.
func (s *Storage) ReadLocal(
	c *kvrpcpb.Context, key []byte,
) (r storage.LocalRead, ok bool, err error) {
	if err := s.checkContext(c); err != nil {
		return storage.LocalRead{}, true, err
	}
	local, err := s.store.LocalRead(header(c), key)
	if err != nil || local == nil || local.Region.ExpiryFloor > 0 {
		return storage.LocalRead{}, err != nil, err
	}
	view := s.view(engine.LatestOf(s.engine), local.Region, 0)
	return storage.LocalRead{Reader: view, Term: local.Term(), Valid: local.Valid}, true, nil
}

// Leadership implements storage.BoundStorage.
func (s *Storage) Leadership(c *kvrpcpb.Context) (uint64, error) {
	if err := s.checkContext(c); err != nil {
		return 0, err
	}
	return s.store.LeaderTerm(header(c))
}

// BoundReader implements storage.BoundStorage.
func (s *Storage) BoundReader(
	ctx context.Context, c *kvrpcpb.Context, key []byte,
) (storage.Reader, uint64, error) {
	r, term, err := s.read(ctx, c, key)
	if err != nil {
		return nil, 0, err
	}
	if term == 0 {
		r.Close()
		return nil, 0, &regionerr.StaleCommandError{}
	}
	return r, term, nil
}

// WriteBound implements storage.BoundStorage.
func (s *Storage) WriteBound(
	c *kvrpcpb.Context, b storage.Bound, mods []storage.Modify, deadline time.Time,
	done func(err error, known bool),
) {
	s.write(c, b, mods, deadline, message.NewCallbackFunc(func(r message.Result) {
		var unknown *regionerr.UnknownError
		done(r.Err, !errors.As(r.Err, &unknown))
	}))
}

// confirmed proves leadership through the region's peer, then takes the view and checks the epoch
// on it.
func (s *Storage) confirmed(
	ctx context.Context, h message.Header, key []byte,
) (*storage.View, uint64, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	deadline, _ := ctx.Deadline()
	end := trace.From(ctx).Begin("ask the majority whether this store leads")
	read := &message.Read{
		Header: h, Deadline: s.store.Due(deadline), Callback: message.NewCallback(),
	}
	s.store.Read(read)
	res, err := read.Callback.Wait(ctx)
	if end(); err == nil {
		err = res.Err
	}
	if err != nil {
		return nil, 0, err
	}
	at := s.times.ofReader(h.RegionID)
	snap := s.engine.NewSnapshot()
	region, err := s.store.CheckSnapshot(snap, h, key)
	if err != nil {
		snap.Close()
		s.store.ReadFailed(h.RegionID, err)
		return nil, 0, err
	}
	return s.view(snap, region, at), read.Term, nil
}

// view shows a region, and reports what is read and which reads fail. at is the time before the
// snapshot was taken: by a later one, a key would be hidden that has been put again since.
func (s *Storage) view(snap engine.Snapshot, region *metapb.Region, at uint64) *storage.View {
	id := region.Id
	if region.ExpiryFloor == 0 {
		at = 0
	}
	return storage.NewView(snap, region.StartKey,
		region.EndKey).HideExpired(max(at, region.ExpiryFloor)).
		Report(func(err error) { s.store.ReadFailed(id, err) }).
		Count(func(keys, bytes int) { s.store.NoteRead(id, keys, bytes) })
}

// bound gives a request a deadline. One that has its own is waited for under it as it is: another
// context on top would only be made, linked to the first and unlinked again, for every put.
func (s *Storage) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, s.timeout)
}

// Write implements storage.Storage.
func (s *Storage) Write(
	ctx context.Context, c *kvrpcpb.Context, mods []storage.Modify,
) (uint64, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	deadline, _ := ctx.Deadline()
	cb := message.NewCallback()
	rec := trace.From(ctx)
	s.write(c, storage.Bound{Traced: rec != nil}, mods, deadline, cb)
	res, err := cb.Wait(ctx)
	if err != nil {
		return 0, err
	}
	s.record(rec, res.Stages())
	return res.Index, res.Err
}

// record adds the stages of a write to a trace.
func (s *Storage) record(rec *trace.Recorder, st *message.Stages) {
	if rec == nil || st == nil {
		return
	}
	for _, stage := range stages.All() {
		from, took := stage.Of(st)
		rec.Add(stage.String(), s.store.TimeOf(from), took)
	}
}

// WriteAsync implements storage.AsyncWriter.
func (s *Storage) WriteAsync(
	c *kvrpcpb.Context, mods []storage.Modify, deadline time.Time, done func(uint64, error),
) {
	s.write(c, storage.Bound{}, mods, deadline,
		message.NewCallbackFunc(func(r message.Result) { done(r.Index, r.Err) }))
}

// write sends a write to its region, bound to a term if b has one. The requests are encoded here,
// on the caller's goroutine.
func (s *Storage) write(
	c *kvrpcpb.Context, b storage.Bound, mods []storage.Modify, deadline time.Time,
	cb *message.Callback,
) {
	if err := s.checkContext(c); err != nil || len(mods) == 0 {
		cb.Fail(err)
		return
	}
	w := &message.Write{
		Header: header(c), MinKey: mods[0].Key, MaxKey: mods[0].Key, DeletesOnly: true,
		Deadline: s.store.Due(deadline), Callback: cb,
	}
	w.Identity, w.Traced = identity(c), b.Traced
	if b.Term != 0 {
		w.Header.Term, w.Bound = b.Term, true
	}
	size := message.WriteIDMax
	for i := range mods {
		size += len(mods[i].Key) + len(mods[i].Value) + 40
	}
	w.Payload = message.AppendWriteID(make([]byte, 0, size), w.Identity.ID)
	for i := range mods {
		m := &mods[i]
		if bytes.Compare(m.Key, w.MinKey) < 0 {
			w.MinKey = m.Key
		}
		if bytes.Compare(m.Key, w.MaxKey) > 0 {
			w.MaxKey = m.Key
		}
		switch {
		case m.Delete:
			w.Payload = message.AppendDelete(w.Payload, string(m.CF), m.Key)
		case m.TTL > 0:
			w.DeletesOnly, w.Expiring = false, true
			w.Payload = message.AppendPutWithLife(w.Payload, string(m.CF), m.Key, m.Value,
				life(s.store.Millis(), m.TTL))
		default:
			w.DeletesOnly = b.Ends
			w.Payload = message.AppendPut(w.Payload, string(m.CF), m.Key, m.Value)
		}
	}
	s.send(w)
}

// Split implements storage.Splitter.
func (s *Storage) Split(
	ctx context.Context, c *kvrpcpb.Context, keys [][]byte,
) ([]*metapb.Region, error) {
	if err := s.checkContext(c); err != nil {
		return nil, err
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	return s.store.Split(ctx, header(c), keys)
}

// Compare implements storage.Comparer.
func (s *Storage) Compare(ctx context.Context, c *kvrpcpb.Context) (message.Comparison, error) {
	if err := s.checkContext(c); err != nil {
		return message.Comparison{}, err
	}
	return s.store.CompareReplicas(ctx, header(c))
}

// identity is that of the write which a context belongs to.
func identity(c *kvrpcpb.Context) message.Identity {
	if c.WriteClient == 0 {
		return message.Identity{}
	}
	id := message.Identity{
		ID:      message.WriteID{Client: c.WriteClient, Number: c.WriteNumber},
		Attempt: c.WriteAttempt, Position: c.LogPosition,
	}
	for _, o := range c.WriteOrigins {
		if o != nil {
			id.Origins = append(id.Origins,
				message.Origin{RegionID: o.RegionId, Position: o.LogPosition})
		}
	}
	return id
}
