package crash

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/engine/memengine"
	"github.com/tinykv/tinykv/kv/faultfs"
	"github.com/tinykv/tinykv/kv/raftstore/meta"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// TestModeIsLearntAndKept: a store takes the cluster's mode when it joins, keeps it on disk, and
// does not join a placement service that says another one.
func TestModeIsLearntAndKept(t *testing.T) {
	d := &disks{fs: faultfs.NewMemFS(nil), eng: memengine.New()}
	p := &placement{stores: map[uint64]bool{}, mode: "txn"}
	ctl := &faultfs.Controller{}
	ok, err := d.join(p, ctl)
	require.NoError(t, err)
	require.True(t, ok)
	ident := new(rspb.StoreIdent)
	_, err = meta.Load(d.eng, meta.StoreIdentKey, ident)
	require.NoError(t, err)
	require.Equal(t, "txn", ident.Mode)
	p.mode = ""
	_, err = d.join(p, ctl)
	require.ErrorContains(t, err, "mode txn")
	p.mode = "txn"
	_, err = d.join(p, ctl)
	require.NoError(t, err)
}
