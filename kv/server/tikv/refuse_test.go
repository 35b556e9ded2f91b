package tikv

import (
	"context"
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

// TestRefuseAtTheDeadline: a write within a batch whose deadline has passed is answered with words
// from which its client can tell that the outcome is unknown: there is no status.
func TestRefuseAtTheDeadline(t *testing.T) {
	_, _, late := outcome(context.DeadlineExceeded)
	resp := refuse(&request{Cmd: &tikvpb.BatchCommandsRequest_Request_RawPut{
		RawPut: &kvrpcpb.RawPutRequest{},
	}}, late)
	require.Contains(t, resp.GetRawPut().GetError(), "the outcome is unknown")
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
