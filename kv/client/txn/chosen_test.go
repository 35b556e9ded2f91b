package txn

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/transaction/mvcc"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

var kinds = map[string]Commits{"one phase": Fastest, "asynchronous": NoOnePhase}

// rig is a world with a transaction that is about to be committed.
type rig struct {
	*world
	t   *testing.T
	c   *Client
	ctx context.Context
}

func newRig(t *testing.T, k Commits) *rig {
	w, c := newWorld(t)
	c.SetCommits(k)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	r := &rig{w, t, c, ctx}
	require.Equal(t, "", r.get()) // and it learns the region
	return r
}

func (r *rig) set(ctx context.Context, value string) (*Txn, error) {
	r.t.Helper()
	x, err := r.c.Begin(r.ctx)
	require.NoError(r.t, err)
	x.Set([]byte("k"), []byte(value))
	x.Set([]byte("l"), []byte(value))
	return x, x.Commit(ctx)
}

func (r *rig) get() string {
	r.t.Helper()
	x, err := r.c.Begin(r.ctx)
	require.NoError(r.t, err)
	out := ""
	for _, k := range []string{"k", "l"} {
		v, _, err := x.Get(r.ctx, []byte(k))
		require.NoError(r.t, err)
		out += string(v)
	}
	return out
}

// idle waits for the client, and makes another one.
func (r *rig) idle() {
	r.t.Helper()
	r.c.Close()
	kv := r.c.kv
	r.c = New(kv, r.world)
	require.Zero(r.t, r.mem.Len(string(engine.CFLock)),
		"what is in doubt is ended in the background")
}

// TestLostAnswersOfPrewrites: an answer that is lost is asked for again, and the timestamp is that
// of the first attempt.
func TestLostAnswersOfPrewrites(t *testing.T) {
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, kind)
			var left atomic.Int64
			left.Store(2)
			var at atomic.Uint64
			r.onPrewrite(func(in *kvrpcpb.PrewriteRequest) (*kvrpcpb.PrewriteResponse, error) {
				resp, err := r.srv.KvPrewrite(r.ctx, in)
				if left.Add(-1) == 1 {
					at.Store(max(resp.MinCommitTs, resp.OnePcCommitTs))
				}
				if left.Load() >= 0 {
					return nil, status.Error(codes.Unavailable, "lost")
				}
				return resp, err
			})
			x, err := r.set(r.ctx, "1")
			require.NoError(t, err)
			require.NotZero(t, at.Load())
			require.Equal(t, at.Load(), x.CommitTS())
			require.Equal(t, "11", r.get())
			r.idle()
		})
	}
}

// TestAnswersThatNeverCome: the outcome is unknown, and the transaction happened all the same.
// Nothing rolls it back.
func TestAnswersThatNeverCome(t *testing.T) {
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, kind)
			r.onPrewrite(func(in *kvrpcpb.PrewriteRequest) (*kvrpcpb.PrewriteResponse, error) {
				_, _ = r.srv.KvPrewrite(r.ctx, in)
				return nil, status.Error(codes.Unavailable, "lost")
			})
			short, stop := context.WithTimeout(r.ctx, 50*time.Millisecond)
			defer stop()
			_, err := r.set(short, "1")
			// it knows if it had time to ask
			require.True(t, err == nil || IsUnknown(err), "%v", err)
			r.idle()
			require.Equal(t, "11", r.get())
		})
	}
}

// TestRequestsThatComeLate: the outcome is unknown; this client finds out that nothing has
// happened, and a request that arrives after that does nothing.
func TestRequestsThatComeLate(t *testing.T) {
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, kind)
			var late *kvrpcpb.PrewriteRequest
			r.onPrewrite(func(in *kvrpcpb.PrewriteRequest) (*kvrpcpb.PrewriteResponse, error) {
				late = in
				return nil, status.Error(codes.Unavailable, "on its way")
			})
			short, stop := context.WithTimeout(r.ctx, 50*time.Millisecond)
			defer stop()
			_, err := r.set(short, "1")
			require.Error(t, err)
			r.idle()
			resp, err := r.srv.KvPrewrite(r.ctx, late)
			require.NoError(t, err)
			require.NotEmpty(t, resp.Errors)
			require.Equal(t, "", r.get())
		})
	}
}

// TestDoubtIsSettled: a store refuses a request of which an earlier attempt got no answer. The
// client asks what became of the transaction, and knows.
func TestDoubtIsSettled(t *testing.T) {
	for name, kind := range kinds {
		for _, arrives := range []bool{true, false} {
			t.Run(fmt.Sprint(name, " arrives=", arrives), func(t *testing.T) {
				r := newRig(t, kind)
				first := true
				r.onPrewrite(func(in *kvrpcpb.PrewriteRequest) (*kvrpcpb.PrewriteResponse, error) {
					if !first {
						return &kvrpcpb.PrewriteResponse{
							Errors: []*kvrpcpb.KeyError{{Abort: "the store is out of sorts"}},
						}, nil
					}
					if first = false; arrives {
						_, _ = r.srv.KvPrewrite(r.ctx, in)
					}
					return nil, status.Error(codes.Unavailable, "lost")
				})
				x, err := r.set(r.ctx, "1")
				if arrives {
					require.NoError(t, err)
					require.Greater(t, x.CommitTS(), x.StartTS())
					require.Equal(t, "11", r.get())
				} else {
					require.ErrorContains(t, err, "out of sorts")
					require.False(t, IsUnknown(err))
					require.Equal(t, "", r.get())
				}
				r.idle()
			})
		}
	}
}

// TestConflictsLeaveNoDoubt: a conflict says that the transaction has not happened, also when an
// earlier answer was lost. One that is too old to be known is in doubt.
func TestConflictsLeaveNoDoubt(t *testing.T) {
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, kind)
			first := true
			other := New(r.c.kv, r.world)
			defer other.Close()
			r.onPrewrite(func(in *kvrpcpb.PrewriteRequest) (*kvrpcpb.PrewriteResponse, error) {
				if !first {
					return r.srv.KvPrewrite(r.ctx, in)
				}
				first = false
				r.onPrewrite(nil)
				require.NoError(t,
					other.Run(r.ctx, func(x *Txn) error {
						x.Set([]byte("k"), []byte("other"))
						return nil
					}))
				return nil, status.Error(codes.Unavailable, "lost")
			})
			_, err := r.set(r.ctx, "1")
			require.ErrorIs(t, err, ErrConflict)
			require.False(t, IsUnknown(err))
			r.idle()
			require.Equal(t, "other", r.get())

			first = true
			r.onPrewrite(func(*kvrpcpb.PrewriteRequest) (*kvrpcpb.PrewriteResponse, error) {
				if first {
					first = false
					return nil, status.Error(codes.Unavailable, "lost")
				}
				return &kvrpcpb.PrewriteResponse{
					Errors: []*kvrpcpb.KeyError{{Abort: tooOld + " than"}},
				}, nil
			})
			_, err = r.set(r.ctx, "2")
			require.True(t, IsUnknown(err), "%v", err)
		})
	}
}

// TestPushedCommits: a reader was promised that the transaction commits later. It does.
func TestPushedCommits(t *testing.T) {
	r := newRig(t, Fastest)
	pushed := uint64(0)
	r.onPrewrite(func(in *kvrpcpb.PrewriteRequest) (*kvrpcpb.PrewriteResponse, error) {
		plain := *in
		plain.TryOnePc = false // as if the store could not
		return r.srv.KvPrewrite(r.ctx, &plain)
	})
	r.onCommit(func(in *kvrpcpb.CommitRequest) (*kvrpcpb.CommitResponse, error) {
		if pushed == 0 {
			pushed = in.CommitVersion + 1<<30
			return &kvrpcpb.CommitResponse{Error: &kvrpcpb.KeyError{
				Retryable:       "too early",
				CommitTsExpired: &kvrpcpb.CommitTsExpired{MinCommitTs: pushed},
			}}, nil
		}
		return r.srv.KvCommit(r.ctx, in)
	})
	x, err := r.set(r.ctx, "1")
	require.NoError(t, err)
	require.GreaterOrEqual(t, x.CommitTS(), pushed)
	require.Equal(t, mvcc.PhysicalTime(pushed), mvcc.PhysicalTime(x.CommitTS()))
}

// TestLockedReadsOfALostLock: a transaction that has only locked keys fails at its end if it may
// have lost them, and asks only where it may.
func TestLockedReadsOfALostLock(t *testing.T) {
	w, c := newWorld(t)
	ctx := context.Background()
	lock := func(age time.Duration) *Txn {
		x, err := c.BeginPessimistic(ctx)
		require.NoError(t, err)
		_, err = x.LockKeys(ctx, []byte("k"))
		require.NoError(t, err)
		x.begun = x.begun.Add(-age) // as if it had begun and locked then
		return x
	}
	lose := func(x *Txn) {
		resp, err := w.KvBatchRollback(ctx,
			&kvrpcpb.BatchRollbackRequest{StartVersion: x.StartTS(), Keys: [][]byte{[]byte("k")}})
		require.NoError(t, err)
		require.Nil(t, resp.Error)
	}
	x := lock(lockLives/2 + time.Second)
	lose(x)
	require.ErrorIs(t, x.Commit(ctx), ErrLockLost)
	x = lock(lockLives/2 + time.Second)
	require.NoError(t, x.Commit(ctx))
	require.Greater(t, time.Duration(x.locks.alive.Load()), lockLives/2, "it has asked")
	x = lock(0)
	require.NoError(t, x.Commit(ctx))
	require.Less(t, time.Duration(x.locks.alive.Load()), lockLives/2)
}
