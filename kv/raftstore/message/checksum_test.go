package message

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
)

// TestEveryFlippedBitOfAnEntry: whatever bit of an entry flips, the entry is not taken for a good
// one, or says what it said before.
func TestEveryFlippedBitOfAnEntry(t *testing.T) {
	data := AppendHeader(nil, 7, &metapb.RegionEpoch{Version: 3, ConfVer: 2})
	data = AppendWriteID(data, WriteID{Client: 99, Number: 300})
	data = AppendPut(data, "default", []byte("key"), []byte("value"))
	data = AppendDelete(data, "write", []byte("other"))
	data = AppendChecksum(data)
	good, err := DecodeEntry(data)
	require.NoError(t, err)
	ops := func(e *Entry) (out []Op) {
		e.VisitOps(func(op Op) bool { out = append(out, op); return true })
		return out
	}
	want := ops(&good)
	require.Len(t, want, 2)
	caught := 0
	for bit := range len(data) * 8 {
		bad := append([]byte{}, data...)
		bad[bit/8] ^= 1 << (bit % 8)
		e, err := DecodeEntry(bad)
		if err != nil {
			caught++
			continue
		}
		require.Equal(t, want, ops(&e), "bit %d", bit)
		require.Equal(t, good.Header, e.Header, "bit %d", bit)
	}
	require.Greater(t, caught, len(data)*8-16, "at most the tag of the checksum itself may be lost")
}

func TestDecodeConfChange(t *testing.T) {
	peer := &metapb.Peer{Id: 5, StoreId: 2}
	cmd := raft_cmdpb.RaftCmdRequest{
		Header: &raft_cmdpb.RaftRequestHeader{RegionId: 1},
		AdminRequest: &raft_cmdpb.AdminRequest{
			CmdType:    raft_cmdpb.AdminCmdType_ChangePeer,
			ChangePeer: &raft_cmdpb.ChangePeerRequest{Peer: peer},
		},
	}
	ctx, err := cmd.Marshal()
	require.NoError(t, err)
	ctx = AppendChecksum(ctx)
	decode := func(cc eraftpb.ConfChange) error {
		data, err := cc.Marshal()
		require.NoError(t, err)
		_, _, err = DecodeConfChange(data)
		return err
	}
	require.NoError(t, decode(eraftpb.ConfChange{NodeId: 5, Context: ctx}))
	require.ErrorIs(t, decode(eraftpb.ConfChange{NodeId: 4, Context: ctx}), ErrCorrupt)
	require.ErrorIs(t,
		decode(eraftpb.ConfChange{
			NodeId: 5, ChangeType: eraftpb.ConfChangeType_RemoveNode, Context: ctx,
		}), ErrCorrupt)
	ctx[len(ctx)-1] ^= 1
	require.ErrorIs(t, decode(eraftpb.ConfChange{NodeId: 5, Context: ctx}), ErrCorrupt)
	var again raft_cmdpb.RaftCmdRequest
	require.NoError(t, again.Unmarshal(ctx), "generated code skips the field")
	again.Checksum = nil
	require.Equal(t, cmd, again)
}
