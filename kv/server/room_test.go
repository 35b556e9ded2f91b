package server

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	rpc "github.com/tinykv/tinykv/pkg/rpc/server"
	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// TestAnswersTakeRoom: with no room left, large reads are refused as busy, as calls and on the
// stream, and small ones are answered. A scan that may be cut is cut where the room ends. All room
// is given back.
func TestAnswersTakeRoom(t *testing.T) {
	s := newServer()
	for i := range 8 {
		put(t, s, "", string(rune('a'+i)), string(make([]byte, 100<<10)))
	}
	put(t, s, "", "z", "small")
	c := overTheWire(t, s)
	ctx := t.Context()
	busy := func(e *errorpb.Error) {
		t.Helper()
		require.Equal(t, rpc.NoRoom, e.GetServerIsBusy().GetReason())
	}
	st, err := c.BatchCommands(ctx)
	require.NoError(t, err)
	batched := func(cmd *kvrpcpb.BatchCommand) *kvrpcpb.BatchReply {
		t.Helper()
		require.NoError(t,
			st.Send(&kvrpcpb.BatchCommandsRequest{Commands: []*kvrpcpb.BatchCommand{cmd}}))
		m, err := st.Recv()
		require.NoError(t, err)
		require.Len(t, m.Replies, 1)
		return m.Replies[0]
	}
	scan := &kvrpcpb.RawScanRequest{Limit: 100}
	get := &kvrpcpb.RawGetRequest{Key: []byte("a")}

	const all = 64 << 20
	require.True(t, s.answers.Take(all))
	resp, err := c.RawScan(ctx, scan)
	require.NoError(t, err)
	busy(resp.RegionError)
	require.Empty(t, resp.Kvs)
	one, err := c.RawGet(ctx, get)
	require.NoError(t, err)
	busy(one.RegionError)
	busy(batched(&kvrpcpb.BatchCommand{Id: 1, Scan: scan}).Scan.RegionError)
	busy(batched(&kvrpcpb.BatchCommand{Id: 2, Get: get}).Get.RegionError)
	require.Equal(t, "small",
		string(
			batched(&kvrpcpb.BatchCommand{
				Id: 3, Get: &kvrpcpb.RawGetRequest{Key: []byte("z")},
			}).Get.Value))

	s.answers.Give(512 << 10)
	cut, err := c.RawScan(ctx, &kvrpcpb.RawScanRequest{Limit: 100, MaxBytes: 1 << 20})
	require.NoError(t, err)
	require.Nil(t, cut.RegionError)
	require.True(t, cut.More)
	require.Len(t, cut.Kvs, 5, "what fits into 512 KiB")
	uncut, err := c.RawScan(ctx, scan)
	require.NoError(t, err)
	busy(uncut.RegionError)

	s.answers.Give(all - 512<<10)
	whole := batched(&kvrpcpb.BatchCommand{Id: 4, Scan: scan})
	require.Len(t, whole.Scan.Kvs, 9)
	require.NoError(t, st.CloseSend())
	require.Eventually(t, func() bool {
		return s.answers.Used() == 0
	}, 20*time.Second, time.Millisecond)
}
