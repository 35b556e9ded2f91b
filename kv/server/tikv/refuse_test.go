package tikv

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/pingcap/kvproto/pkg/errorpb"
	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"github.com/pingcap/kvproto/pkg/tikvpb"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/regionerr"
)

// Each kind of request within a batch has an answer of its kind that carries an error: one without
// would crash its client.
func TestRefuseEveryKind(t *testing.T) {
	for _, err := range []error{
		errNotServed, status.Error(codes.Unavailable, "stopping, not served"),
	} {
		for _, w := range (*tikvpb.BatchCommandsRequest_Request)(nil).XXX_OneofWrappers() {
			name := strings.TrimPrefix(
				reflect.TypeOf(w).Elem().Name(),
				"BatchCommandsRequest_Request_",
			)
			if name == "Empty" {
				continue
			}
			req := &request{}
			reflect.ValueOf(req).
				Elem().
				FieldByName("Cmd").
				Set(reflect.New(reflect.TypeOf(w).Elem()))
			resp := refuse(req, err)
			require.NotNil(t, resp, name)
			require.True(
				t,
				strings.HasSuffix(reflect.TypeOf(resp.Cmd).Elem().Name(), "_"+name),
				name,
			)
			if name != "BroadcastTxnStatus" { // whose answer has no fields
				require.Contains(t, resp.String(), "not served", name)
			}
			data, err := resp.Marshal()
			require.NoError(t, err, name)
			require.NoError(t, new(response).Unmarshal(data), name)
		}
	}
	require.Nil(t, refuse(&request{}, errNotServed))
}

// TestUnknownOutcomesInBatches: a command that may have changed something gets an answer of no kind
// if its outcome is unknown, whatever the reason. A message or a key error is a refusal to TiKV's
// client: it reports that a commit has failed which may have taken effect. Reads say why they
// failed, and so do writes that were refused before a proposal.
func TestUnknownOutcomesInBatches(t *testing.T) {
	changes := []*request{
		{Cmd: &tikvpb.BatchCommandsRequest_Request_RawPut{}},
		{Cmd: &tikvpb.BatchCommandsRequest_Request_RawDeleteRange{}},
		{Cmd: &tikvpb.BatchCommandsRequest_Request_Prewrite{}},
		{Cmd: &tikvpb.BatchCommandsRequest_Request_Commit{}},
		{Cmd: &tikvpb.BatchCommandsRequest_Request_ResolveLock{}},
	}
	reads := []*request{
		{Cmd: &tikvpb.BatchCommandsRequest_Request_RawGet{}},
		{Cmd: &tikvpb.BatchCommandsRequest_Request_Get{}},
		{Cmd: &tikvpb.BatchCommandsRequest_Request_ScanLock{}},
	}
	for _, c := range []struct {
		err     error
		unknown bool
	}{
		{context.DeadlineExceeded, true},
		{context.Canceled, true},
		{errors.New("the disk is on fire"), true},
		{regionerr.ErrStopping, false},
		{regionerr.ErrFailed, false},
	} {
		_, _, err := outcome(c.err)
		require.Error(t, err)
		for _, req := range changes {
			resp := refuse(req, err)
			require.NotNil(t, resp)
			require.Equal(t, c.unknown, resp.Cmd == nil, "%T: %v", req.Cmd, c.err)
			data, err := (&tikvpb.BatchCommandsResponse{
				Responses: []*response{resp}, RequestIds: []uint64{1},
			}).Marshal()
			require.NoError(t, err)
			sent := new(tikvpb.BatchCommandsResponse)
			require.NoError(t, sent.Unmarshal(data))
			require.Len(t, sent.Responses, 1) // its client waits for it
			require.Equal(t, c.unknown, sent.Responses[0].Cmd == nil)
		}
		for _, req := range reads {
			require.NotNil(t, refuse(req, err).Cmd, "%T: %v", req.Cmd, c.err)
		}
	}
}

// TestLateWriteOnAStream: such an answer is kept for its client like any other.
func TestLateWriteOnAStream(t *testing.T) {
	b := &batchStream{service: &Service{}}
	_, _, late := outcome(context.DeadlineExceeded)
	commit := &request{Cmd: &tikvpb.BatchCommandsRequest_Request_Commit{}}
	b.reply(3, commit, &response{}, late, nil)
	require.Len(t, b.mu.answers, 1)
	require.Equal(t, uint64(3), b.mu.answers[0].id)
	require.Nil(t, b.mu.answers[0].resp.Cmd)
}

// TestRefuseBusy: the answers that can be large say in their region error that there was no room.
func TestRefuseBusy(t *testing.T) {
	for _, resp := range []*response{
		{
			Cmd: &tikvpb.BatchCommandsResponse_Response_RawGet{
				RawGet: &kvrpcpb.RawGetResponse{Value: []byte("v")},
			},
		},
		{Cmd: &tikvpb.BatchCommandsResponse_Response_RawBatchGet{}},
		{Cmd: &tikvpb.BatchCommandsResponse_Response_RawScan{}},
		{Cmd: &tikvpb.BatchCommandsResponse_Response_RawBatchScan{}},
		{
			Cmd: &tikvpb.BatchCommandsResponse_Response_Get{
				Get: &kvrpcpb.GetResponse{Value: []byte("v")},
			},
		},
		{Cmd: &tikvpb.BatchCommandsResponse_Response_BatchGet{}},
		{Cmd: &tikvpb.BatchCommandsResponse_Response_Scan{}},
		{Cmd: &tikvpb.BatchCommandsResponse_Response_ScanLock{}},
	} {
		got := refuseBusy(resp)
		require.Contains(t, got.String(), "server_is_busy", got)
		require.NotContains(t, got.String(), "value")
	}
	for name, answer := range busyAnswers {
		got := answer(&errorpb.Error{Message: "why"})
		require.Contains(t, reflect.TypeOf(got).String(),
			"."+strings.TrimPrefix(strings.Replace(name, "CompareAndSwap", "CAS", 1), "Kv")+
				"Response")
		require.Contains(t, fmt.Sprint(got), "why", name)
	}
}
