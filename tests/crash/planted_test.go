package crash

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// planted are bugs that the enumeration must find: source text and what takes its place. They are
// compiled by way of an overlay, so that the stores' own code knows nothing of them.
var planted = []struct {
	name, file, run string
	change          [][2]string
}{
	{"B5-send-before-persist", "kv/raftstore/worker.go", "append-follower", [][2]string{
		{"	w.flushMessages()\n	if err := w.persist(); err != nil {", "	for _, p := range t.ready {\n		for i := range p.late {\n			p.sendRaft(t, &p.late[i])\n		}\n		p.late = nil\n	}\n	w.flushMessages()\n	if err := w.persist(); err != nil {"},
	}},
	{"B12-no-applying-state", "kv/raftstore/peer_ready.go", "snapshot-receive", [][2]string{
		{"State: rspb.PeerState_Applying, Region: data.Region, Applying: md, Peer: p.meta,", "State: rspb.PeerState_Normal, Region: p.region(), Peer: p.meta,"},
	}},
	{"B19-no-sync-of-the-turn", "kv/raftstore/worker.go", "append", [][2]string{
		{"w.store.log.Write(&t.log, t.sync)", "w.store.log.Write(&t.log, false)"},
	}},
	{"log-gc-without-engine-sync", "kv/raftstore/store.go", "log-gc", [][2]string{
		{"runner.NewRaftLogGC(s.engine.Sync,", "runner.NewRaftLogGC(func() error { return nil },"},
	}},
	{"vote-not-persisted", "kv/raftstore/peer_ready.go", "append-follower|remove-peer-leader", [][2]string{
		{"			t.log.SetHardState(p.regionID, rd.HardState)\n", "			hs := rd.HardState\n			hs.Vote = 0\n			t.log.SetHardState(p.regionID, hs)\n"},
	}},
	{"orphans-kept", "kv/raftstore/recover.go", "destroy", [][2]string{
		{"	if err := s.clearOrphans(snap, ranges); err != nil {\n		return err\n	}\n", ""},
	}},
	{"applied-index-in-a-batch-of-its-own", "kv/raftstore/apply.go", "append", [][2]string{
		{"	if w.batch.Len() > 0 {\n", "	if w.batch.Len() > 0 {\n		b := w.store.engine.NewBatch()\n		for _, a := range w.touched {\n			meta.Put(b, meta.ApplyStateKey(a.regionID), &rspb.RaftApplyState{AppliedIndex: a.applied, TruncatedState: &a.truncated})\n		}\n		if err := w.store.engine.Write(b, false); err != nil {\n			return err\n		}\n"},
	}},
}

// TestPlanted builds each bug in and wants TestCrash to fail.
func TestPlanted(t *testing.T) {
	if os.Getenv("PLANTED") == "" {
		t.Skip("PLANTED=1 runs it; it compiles and runs this package once for each bug")
	}
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	for _, bug := range planted {
		t.Run(bug.name, func(t *testing.T) {
			file := filepath.Join(root, bug.file)
			data, err := os.ReadFile(file)
			require.NoError(t, err)
			text := string(data)
			for _, c := range bug.change {
				require.Equal(t, 1, strings.Count(text, c[0]), "the place of the bug is gone: %s", c[0])
				text = strings.Replace(text, c[0], c[1], 1)
			}
			dir := t.TempDir()
			bad := filepath.Join(dir, "bad.go")
			require.NoError(t, os.WriteFile(bad, []byte(text), 0o600))
			overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{file: bad}})
			require.NoError(t, err)
			path := filepath.Join(dir, "overlay.json")
			require.NoError(t, os.WriteFile(path, overlay, 0o600))
			cmd := exec.Command("go", "test", "-count=1", "-overlay", path, "-failfast", "-run", "^TestCrash$/^("+bug.run+")", "-timeout", "3m", "./tests/crash", "-args", "-maxfail", "1", "-workers", "4")
			cmd.Dir = root
			out, err := cmd.CombinedOutput()
			require.Error(t, err, "not found")
			require.Contains(t, string(out), "--- FAIL: TestCrash/", "%s", out)
			for _, line := range strings.Split(string(out), "\n") {
				if strings.Contains(line, "Error:") || strings.Contains(line, "crash before") {
					t.Log(strings.TrimSpace(line))
					break
				}
			}
		})
	}
}
