package tikv

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"github.com/pingcap/kvproto/pkg/tikvpb"
	"github.com/stretchr/testify/require"
	"github.com/tikv/client-go/v2/tikv"
	"github.com/tikv/client-go/v2/tikvrpc"
	"google.golang.org/grpc"
)

// TestAnswerOfNoKind: client-go takes an answer without content for an error of the call. The store
// answers so within a batch if it does not know what became of a write. The answer is read off the
// wire, where an element without content is two bytes.
func TestAnswerOfNoKind(t *testing.T) {
	data, err := (&tikvpb.BatchCommandsResponse{
		Responses:  []*tikvpb.BatchCommandsResponse_Response{{}},
		RequestIds: []uint64{7},
	}).Marshal()
	require.NoError(t, err)
	require.Equal(t, []byte{0x0a, 0x00}, data[:2])
	sent := new(tikvpb.BatchCommandsResponse)
	require.NoError(t, sent.Unmarshal(data))
	require.Len(t, sent.Responses, 1)
	resp, err := tikvrpc.FromBatchCommandsResponse(sent.Responses[0])
	require.Error(t, err)
	require.Nil(t, resp)
}

// noKind is a store that answers each command of a batch so.
type noKind struct{ tikvpb.UnimplementedTikvServer }

func (*noKind) BatchCommands(stream tikvpb.Tikv_BatchCommandsServer) error {
	for {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		resp := &tikvpb.BatchCommandsResponse{RequestIds: req.RequestIds}
		for range req.RequestIds {
			resp.Responses = append(resp.Responses, &tikvpb.BatchCommandsResponse_Response{})
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

// TestCommitAnsweredByNoKind: client-go's sender takes it for an error of that one call, the stream
// goes on, and no answer is there in which a commit could look for a refusal.
func TestCommitAnsweredByNoKind(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := grpc.NewServer()
	tikvpb.RegisterTikvServer(s, &noKind{})
	served := make(chan error, 1)
	go func() { served <- s.Serve(lis) }()
	defer func() { require.NoError(t, <-served) }()
	defer s.Stop()
	cl := tikv.NewRPCClient()
	defer func() { require.NoError(t, cl.Close()) }()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range 3 {
		resp, err := cl.SendRequest(ctx, lis.Addr().String(), tikvrpc.NewRequest(
			tikvrpc.CmdCommit, &kvrpcpb.CommitRequest{StartVersion: 1, CommitVersion: 2}),
			time.Minute)
		require.ErrorContains(t, err, "Unknown command response")
		require.Nil(t, resp)
	}
}
