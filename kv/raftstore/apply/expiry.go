package apply

import (
	"fmt"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// Keys that expire. A value stays in its column family; when it expires is in the family of expiry
// times (engine/expiry.go), which is looked at only in a region with an expiry floor. The floor is
// 0 until the first value with a TTL is to come: its proposer raises it by an entry of its own
// first. From then on a put without a TTL, and a delete, remove the time.
//
// No clock is read here. An entry carries the time of its proposer; where that is behind the
// region's floor, the floor counts. So all replicas decide alike.
//
// Invariant: what an entry found expired is removed by the same entry, so that no later one finds
// it again, whatever clock it carries.

// errNotExpiring refuses a TTL in a region without an expiry floor, whose readers look at no expiry
// times.
var errNotExpiring = &regionerr.InvalidError{Reason: "the region takes no TTL yet"}

// applyExpire raises the region's expiry floor and removes those of the keys that have expired by
// it. All keys or none are looked at.
func (w *Worker) applyExpire(a *applier, r *raft_cmdpb.ExpireRequest) (message.Result, error) {
	if r.Now == 0 {
		return message.Result{
			Err: regionerr.Invalidf("the expiry floor of region %d cannot be raised to 0",
				a.regionID),
		}, nil
	}
	for _, k := range r.Keys {
		_, err := engine.ParseCF(k.GetCf())
		if err == nil {
			err = regions.CheckKey(a.region, k.GetKey())
		}
		if err != nil {
			return message.Result{Err: err}, nil //nolint:nilerr // a refusal is a result
		}
	}
	if w.batch.Len() > 0 && len(r.Keys) > 0 {
		if err := w.flush(); err != nil {
			return message.Result{}, err
		}
	}
	if r.Now > a.region.ExpiryFloor {
		a.region = regions.Clone(a.region)
		a.region.ExpiryFloor = r.Now
		meta.PutRegionState(w.batch, rspb.PeerState_Normal, a.region, a.peer)
		a.report.Results = append(a.report.Results, message.RaisedFloor{Region: a.region})
	}
	for _, k := range r.Keys {
		cf, _ := engine.ParseCF(k.Cf)
		expired, err := w.expired(a, cf, k.Key, 0)
		if err != nil {
			return message.Result{}, err
		}
		if expired {
			w.remove(a, cf, k.Key, 0)
		}
	}
	return message.Result{}, nil
}

// expired tells whether a key has expired by a time or by the floor. It reads the engine, not the
// batch. A read that fails stops the store, as that of a compare-and-swap does.
func (w *Worker) expired(a *applier, cf engine.CF, key []byte, now uint64) (bool, error) {
	if a.region.ExpiryFloor == 0 {
		return false, nil
	}
	at, err := engine.LoadExpiry(w.engine, cf, key)
	if err != nil {
		return false, fmt.Errorf("read when a key expires: %w", err)
	}
	return at > 0 && at <= max(now, a.region.ExpiryFloor), nil
}

// remove removes a key and when it expires. size is that of its value, 0 if not known.
func (w *Worker) remove(a *applier, cf engine.CF, key []byte, size int) {
	w.batch.Delete(engine.DataKey(cf, key))
	w.batch.Delete(engine.DataKey(cf.Expiry(), key))
	a.report.WrittenKeys++
	a.report.Written += int64(len(key))
	a.report.KeysDelta--
	a.report.SizeDelta -= int64(len(key) + size)
}

// live writes when a key whose value was put or deleted before expires: not at all, if it has no
// TTL. Then a time that is there is removed. Where none is, nothing is written: scans would pass
// over the tombstones of all puts since the last compaction, and a read costs no more than a
// tombstone.
func (w *Worker) live(a *applier, cf engine.CF, key []byte, l message.Life) {
	if a.region.ExpiryFloor == 0 {
		return
	}
	w.keyBuf = engine.AppendDataKey(w.keyBuf[:0], cf.Expiry(), key)
	if l.TTL == 0 {
		if w.mayExpire(w.keyBuf) {
			w.batch.Delete(w.keyBuf)
		}
		return
	}
	w.mortal[string(w.keyBuf)] = struct{}{}
	a.report.Mortal = true
	var value [8]byte
	at := engine.ExpiryOf(max(l.Now, a.region.ExpiryFloor), l.TTL)
	w.batch.Put(w.keyBuf, engine.AppendExpiry(value[:0], at))
	a.report.Written += int64(len(key) + len(value))
	a.report.SizeDelta += int64(len(key) + len(value))
}

// mayExpire tells whether there is an expiry time by this key, in the batch or in the engine. If
// the read fails there may be one. One that the batch has removed counts.
func (w *Worker) mayExpire(timeKey []byte) bool {
	if _, put := w.mortal[string(timeKey)]; put {
		return true
	}
	_, found, err := w.engine.Get(timeKey)
	return found || err != nil
}
