package commands

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tinykv/tinykv/kv/storage"
	"github.com/tinykv/tinykv/kv/transaction/mvcc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestTranscripts: each file is a story; "dump" shows every record.
func TestTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata/stories", func(t *testing.T, path string) {
		for _, local := range []bool{false, true} {
			tell(t, path, local)
		}
	})
}

// tell runs a story. With local, the storage can be read without waiting, so that what can be
// decided at once is.
func tell(t *testing.T, path string, local bool) {
	mem := storage.NewMemStorage()
	var st storage.BoundStorage = mem.Storage()
	if local {
		st = newLeader(mem)
	}
	s := &story{mem: mem, policy: Disk()}
	if strings.Contains(path, "course") {
		s.policy = Policy{Codec: mvcc.CodecCourse, MissingCommits: true}
	}
	s.e = New(st, s.policy, 10*time.Second)
	if strings.Contains(path, "chosen") || strings.Contains(path, "pessimistic") {
		s.e.SetTimestamps(NewTimestamps(func(context.Context) (uint64, error) {
			return 1, nil
		}, func() bool { return true }))
	}
	datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
		return s.run(t, d)
	})
}

type story struct {
	mem    *storage.MemStorage
	policy Policy
	e      *Executor
}

// ts reads a number; "5ms" is a timestamp whose physical part is 5.
func ts(t *testing.T, d *datadriven.TestData, name string) uint64 {
	t.Helper()
	var text string
	if !d.HasArg(name) {
		return 0
	}
	d.ScanArgs(t, name, &text)
	switch ms, isMS := strings.CutSuffix(text, "ms"); {
	case text == "max":
		return mvcc.TsMax
	case isMS:
		var n uint64
		_, err := fmt.Sscan(ms, &n)
		require.NoError(t, err)
		return n << 18
	default:
		var n uint64
		_, err := fmt.Sscan(text, &n)
		require.NoError(t, err)
		return n
	}
}

func keysArg(d *datadriven.TestData, name string) [][]byte {
	var out [][]byte
	for _, a := range d.CmdArgs {
		if a.Key == name {
			for _, v := range a.Vals {
				out = append(out, []byte(v))
			}
		}
	}
	return out
}

func (s *story) run(t *testing.T, d *datadriven.TestData) string {
	ctx := context.Background()
	start, commit := ts(t, d, "s"), ts(t, d, "c")
	switch d.Cmd {
	case "prewrite":
		p := &Prewrite{
			StartTS: start, Primary: keysArg(d, "primary")[0], TTL: ts(t, d, "ttl"),
			MinCommitTS: ts(t, d, "min"), TxnSize: ts(t, d, "size"),
			AsyncCommit: d.HasArg("async"), Secondaries: keysArg(d, "async"),
			OnePC: d.HasArg("one-phase"), MaxCommitTS: ts(t, d, "max"),
			ForUpdateTS: ts(t, d, "f"), Retry: d.HasArg("retry"),
		}
		for _, line := range strings.Split(d.Input, "\n") {
			f := strings.Fields(line)
			var check PessimisticCheck
			if op, locked := strings.CutPrefix(f[0], "locked-"); locked {
				f[0], check = op, LockedBefore
			} else if op, checked := strings.CutPrefix(f[0], "checked-"); checked {
				f[0], check = op, CheckConflict
			}
			m := Mutation{Key: []byte(f[1]), Kind: map[string]mvcc.WriteKind{
				"put": mvcc.WriteKindPut, "delete": mvcc.WriteKindDelete,
				"lock":   mvcc.WriteKindLock,
				"insert": mvcc.WriteKindPut, "check": mvcc.WriteKindPut,
				"put-existing": mvcc.WriteKindPut, "put-absent": mvcc.WriteKindPut,
			}[f[0]]}
			m.Check, m.ExpectedForUpdateTS = check, ts(t, d, "expect")
			m.Strict = d.HasArg("strict")
			m.Insert, m.CheckOnly = f[0] == "insert", f[0] == "check"
			m.Assert = map[string]Assertion{
				"put-existing": AssertExists, "put-absent": AssertAbsent,
			}[f[0]]
			if len(f) > 2 {
				m.Value = []byte(f[2])
			}
			if len(f) > 3 {
				m.Value = []byte(strings.Repeat(f[2], 300))
			}
			p.Mutations = append(p.Mutations, m)
		}
		res, err := s.e.Prewrite(ctx, nil, p)
		out := outcomeOf(append([]error{err}, res.InWay...)...)
		for _, f := range []struct {
			name string
			ts   uint64
		}{
			{"chosen", res.MinCommitTS}, {"committed in one phase at", res.CommitTS},
			{"was committed at", res.Committed},
		} {
			if f.ts > 0 {
				out = fmt.Sprintln(f.name, f.ts)
			}
		}
		return out
	case "acquire":
		return s.acquire(ctx, t, d)
	case "release":
		return outcomeOf(s.e.ReleaseLocks(ctx, nil, keysArg(d, "k"), start, ts(t, d, "f")))
	case "check-secondaries":
		res, err := s.e.CheckSecondaryLocks(ctx, nil, keysArg(d, "k"), start)
		var out strings.Builder
		for _, l := range res.Locks {
			fmt.Fprintf(&out, "%s: async=%v min=%d\n", l.Key, l.AsyncCommit, l.MinCommitTS)
		}
		return out.String() + fmt.Sprintf("commit=%d ", res.CommitTS) + outcomeOf(err)
	case "commit":
		return outcomeOf(s.e.Commit(ctx, nil, keysArg(d, "k"), start, commit))
	case "rollback":
		return outcomeOf(s.e.Rollback(ctx, nil, keysArg(d, "k"), start))
	case "resolve":
		return outcomeOf(s.resolve(ctx, d, start, commit))
	case "status":
		st, err := s.e.CheckTxnStatus(ctx, nil, &StatusQuery{
			Primary: keysArg(d, "k")[0], LockTS: start, CurrentTS: ts(t, d, "now"),
			CallerTS:          ts(t, d, "caller"),
			RollbackIfMissing: !d.HasArg("ask-only"), ForceSyncCommit: d.HasArg("force-sync"),
			VerifyPrimary: d.HasArg("verify"), Pessimistic: d.HasArg("pessimistic"),
		})
		if err != nil {
			return outcomeOf(err)
		}
		return fmt.Sprintf("ttl=%d commit=%d action=%d\n", st.LockTTL, st.CommitTS, st.Action)
	case "get":
		v, err := s.e.Get(ctx, nil, keysArg(d, "k")[0], read(t, d))
		if err != nil {
			return outcomeOf(err)
		}
		return fmt.Sprintf("%q found=%v\n", v.Data[:min(len(v.Data), 20)], v.Found)
	case "batch-get":
		var out strings.Builder
		err := s.e.BatchGet(ctx, nil, keysArg(d, "k"), read(t, d), emitTo(&out))
		return out.String() + outcomeOf(err)
	case "scan":
		var out strings.Builder
		scan := &Scan{
			Read: read(t, d), Limit: int(ts(t, d, "limit")), Reverse: d.HasArg("reverse"),
			KeyOnly: d.HasArg("key-only"),
		}
		for name, bound := range map[string]*[]byte{"from": &scan.Start, "to": &scan.End} {
			if k := keysArg(d, name); len(k) > 0 {
				*bound = k[0]
			}
		}
		err := s.e.Scan(ctx, nil, scan, emitTo(&out))
		return out.String() + outcomeOf(err)
	case "cleanup":
		commit, err := s.e.Cleanup(ctx, nil, keysArg(d, "k")[0], start, ts(t, d, "now"))
		return fmt.Sprintf("commit=%d ", commit) + outcomeOf(err)
	case "heartbeat":
		ttl, err := s.e.HeartBeat(ctx, nil, keysArg(d, "k")[0], start, ts(t, d, "ttl"))
		return fmt.Sprintf("ttl=%d ", ttl) + outcomeOf(err)
	case "locks":
		var out strings.Builder
		var from, to []byte
		if k := keysArg(d, "from"); len(k) > 0 {
			from = k[0]
		}
		if k := keysArg(d, "to"); len(k) > 0 {
			to = k[0]
		}
		locks, err := s.e.ScanLocks(ctx, nil, ts(t, d, "max"), from, to, int(ts(t, d, "limit")))
		for _, l := range locks {
			fmt.Fprintf(&out, "%s: %s s=%d\n", l.Key, l.Kind, l.Ts)
		}
		return out.String() + outcomeOf(err)
	case "delete-range":
		return outcomeOf(s.e.DeleteRange(ctx, nil, keysArg(d, "from")[0], keysArg(d, "to")[0]))
	case "dump":
		return dump(t, s.mem, s.policy.Codec)
	}
	t.Fatalf("%s: unknown command %s", d.Pos, d.Cmd)
	return ""
}

// acquire takes pessimistic locks, and shows what was read.
func (s *story) acquire(ctx context.Context, t *testing.T, d *datadriven.TestData) string {
	p := &PessimisticLock{
		StartTS: ts(t, d, "s"), ForUpdateTS: ts(t, d, "f"), Primary: keysArg(d, "primary")[0],
		TTL: ts(t, d, "ttl"), MinCommitTS: ts(t, d, "min"),
		ReturnValues: d.HasArg("values"), Exists: d.HasArg("exists"),
		OnlyIfExists: d.HasArg("only-existing"),
	}
	for _, k := range keysArg(d, "k") {
		p.Keys = append(p.Keys, LockedKey{Key: k, Absent: d.HasArg("absent")})
	}
	values, err := s.e.AcquireLocks(ctx, nil, p)
	var out strings.Builder
	for i, v := range values {
		if v.Found {
			fmt.Fprintf(&out, "%s = %q\n", p.Keys[i].Key, v.Data)
		}
	}
	return out.String() + outcomeOf(err)
}

// read is "at", with the transactions whose locks are known to hide nothing.
func read(t *testing.T, d *datadriven.TestData) Read {
	rd := At(ts(t, d, "at"))
	if d.HasArg("ignore") {
		rd.Ignore = []uint64{ts(t, d, "ignore")}
	}
	if d.HasArg("through") {
		rd.Through = []uint64{ts(t, d, "through")}
	}
	rd.NeedCommitTS = d.HasArg("commit-ts")
	switch {
	case d.HasArg("committed"):
		rd.Isolation = ReadCommitted
	case d.HasArg("newest"):
		rd.Isolation = ReadNewest
	}
	return rd
}

func emitTo(out *strings.Builder) func(p Pair) error {
	return func(p Pair) error {
		if p.Err != nil {
			fmt.Fprintf(out, "%s: %v\n", p.Key, p.Err)
		} else {
			fmt.Fprintf(out, "%s = %q\n", p.Key, p.Value[:min(len(p.Value), 20)])
		}
		return nil
	}
}

// resolve ends all locks of a transaction, or those at keys.
func (s *story) resolve(ctx context.Context, d *datadriven.TestData, start, commit uint64) error {
	if k := keysArg(d, "k"); len(k) > 0 {
		return s.e.ResolveKeys(ctx, nil, k, start, commit)
	}
	return s.e.ResolveLocks(ctx, nil, Outcomes{start: commit})
}

func outcomeOf(errs ...error) string {
	var out strings.Builder
	for _, err := range errs {
		if err != nil {
			kind := strings.TrimPrefix(fmt.Sprintf("%T", err), "*commands.")
			fmt.Fprintf(&out, "%s: %s\n", kind, err)
		}
	}
	if out.Len() == 0 {
		return "ok\n"
	}
	return out.String()
}

// dump shows all records.
func dump(t *testing.T, mem *storage.MemStorage, codec mvcc.Codec) string {
	view, err := mem.Reader(nil)
	require.NoError(t, err)
	var out strings.Builder
	it := view.Iterate("lock", nil, nil)
	for it.First(); it.Valid(); it.Next() {
		key, err := codec.UserKey(it.Key())
		require.NoError(t, err)
		l, err := codec.DecodeLock(it.Value())
		require.NoError(t, err)
		fmt.Fprintf(&out, "lock %s: %s s=%d primary=%s ttl=%d value=%q", key, l.Kind, l.Ts,
			l.Primary, l.Ttl, l.ShortValue)
		if l.MinCommitTS > 0 {
			fmt.Fprintf(&out, " min=%d", l.MinCommitTS)
		}
		if l.ForUpdateTS > 0 {
			fmt.Fprintf(&out, " for-update=%d", l.ForUpdateTS)
		}
		if l.AsyncCommit {
			fmt.Fprintf(&out, " async=%q", l.Secondaries)
		}
		if len(l.RollbackTS) > 0 {
			fmt.Fprintf(&out, " rollbacks=%d", l.RollbackTS)
		}
		if l.TxnSize > 0 {
			fmt.Fprintf(&out, " size=%d", l.TxnSize)
		}
		fmt.Fprintln(&out)
	}
	it = view.Iterate("write", nil, nil)
	for it.First(); it.Valid(); it.Next() {
		key, c, err := mvcc.SplitKey(it.Key())
		require.NoError(t, err)
		w, err := codec.DecodeWrite(it.Value())
		require.NoError(t, err)
		fmt.Fprintf(&out, "write %s@%d: %s s=%d value=%q", key, c, w.Kind, w.StartTS, w.ShortValue)
		if w.OverlappedRollback {
			fmt.Fprint(&out, " overlapped")
		}
		if w.Fence != nil {
			fmt.Fprintf(&out, " fence=%d", *w.Fence)
		}
		fmt.Fprintln(&out)
	}
	it = view.Iterate("default", nil, nil)
	for it.First(); it.Valid(); it.Next() {
		key, c, err := mvcc.SplitKey(it.Key())
		require.NoError(t, err)
		fmt.Fprintf(&out, "value %s@%d: %d bytes\n", key, c, len(it.Value()))
	}
	if out.Len() == 0 {
		return "nothing\n"
	}
	return out.String()
}

// TestBadTimestamps: they are refused before anything is read.
func TestBadTimestamps(t *testing.T) {
	e := New(storage.NewMemStorage().Storage(), Disk(), time.Second)
	ctx := context.Background()
	var abort *AbortError
	for _, s := range []uint64{0, mvcc.TsMax} {
		_, err := e.Prewrite(ctx, nil,
			&Prewrite{
				StartTS: s, Mutations: []Mutation{{Kind: mvcc.WriteKindPut, Key: []byte("k")}},
			})
		require.ErrorAs(t, err, &abort)
	}
	require.ErrorAs(t, e.Commit(ctx, nil, keys("k"), 5, 5), &abort)
	require.ErrorAs(t, e.Commit(ctx, nil, keys("k"), 5, mvcc.TsMax), &abort)
	require.ErrorAs(t, e.ResolveLocks(ctx, nil, Outcomes{5: 4}), &abort)
	require.True(t, errors.As(e.ResolveLocks(ctx, nil, Outcomes{5: 4}), &abort))
}

func keys(names ...string) [][]byte {
	var out [][]byte
	for _, n := range names {
		out = append(out, []byte(n))
	}
	return out
}
