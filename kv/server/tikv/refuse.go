package tikv

import (
	"reflect"
	"strings"

	"github.com/pingcap/kvproto/pkg/errorpb"
	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"github.com/pingcap/kvproto/pkg/tikvpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/regionerr"
	rpc "github.com/tinykv/tinykv/pkg/rpc/server"
)

// answerTypes are the empty answers within a batch, by the name that a request and its answer have
// in common.
var answerTypes = func() map[string]reflect.Type {
	out := map[string]reflect.Type{}
	for _, w := range (*tikvpb.BatchCommandsResponse_Response)(nil).XXX_OneofWrappers() {
		t := reflect.TypeOf(w).Elem()
		out[strings.TrimPrefix(t.Name(), "BatchCommandsResponse_Response_")] = t
	}
	return out
}()

// refuse makes the answer of a request that failed, so that the stream goes on for the others. Nil
// if the request is of no kind known.
//
// A command that may have changed something, and of which it is not known whether it has, gets an
// answer of no kind. client-go takes that for an error of the call, as it takes the status of a
// command outside a batch: it tries again, and what it reports in the end says that the outcome is
// unknown. In an answer of the command's kind, a message or a key error is a refusal to it: it
// forgets earlier errors of the call and reports that the commit has failed.
//
// All other errors are in an answer of the request's kind: clients know nothing else.
func refuse(
	req *tikvpb.BatchCommandsRequest_Request,
	err error,
) *tikvpb.BatchCommandsResponse_Response {
	if req == nil || req.Cmd == nil {
		return nil
	}
	name := strings.TrimPrefix(
		reflect.TypeOf(req.Cmd).Elem().Name(),
		"BatchCommandsRequest_Request_",
	)
	t, ok := answerTypes[name]
	if !ok {
		return nil
	}
	if !refused(status.Code(err)) && mayChange(req) {
		return &tikvpb.BatchCommandsResponse_Response{}
	}
	wrapper := reflect.New(t)
	answer := reflect.New(wrapper.Elem().Field(0).Type().Elem())
	wrapper.Elem().Field(0).Set(answer)
	setError(answer.Elem(), err)
	resp := &tikvpb.BatchCommandsResponse_Response{}
	reflect.ValueOf(resp).Elem().FieldByName("Cmd").Set(wrapper)
	return resp
}

// refused tells whether a call that ends with code has changed nothing and will not: outcome and
// rpc/server use these codes for errors before a proposal only.
func refused(code codes.Code) bool {
	switch code {
	case codes.InvalidArgument, codes.Unimplemented, codes.ResourceExhausted, codes.Unavailable,
		codes.PermissionDenied, codes.Unauthenticated:
		return true
	}
	return false
}

// mayChange tells whether a command is none of those that only read.
func mayChange(req *tikvpb.BatchCommandsRequest_Request) bool {
	switch req.Cmd.(type) {
	case *tikvpb.BatchCommandsRequest_Request_RawGet,
		*tikvpb.BatchCommandsRequest_Request_RawBatchGet,
		*tikvpb.BatchCommandsRequest_Request_RawScan,
		*tikvpb.BatchCommandsRequest_Request_RawBatchScan,
		*tikvpb.BatchCommandsRequest_Request_RawCoprocessor,
		*tikvpb.BatchCommandsRequest_Request_Coprocessor,
		*tikvpb.BatchCommandsRequest_Request_Get,
		*tikvpb.BatchCommandsRequest_Request_BatchGet,
		*tikvpb.BatchCommandsRequest_Request_Scan,
		*tikvpb.BatchCommandsRequest_Request_ScanLock,
		*tikvpb.BatchCommandsRequest_Request_GetHealthFeedback,
		*tikvpb.BatchCommandsRequest_Request_Empty:
		return false
	}
	return true
}

// refuseBusy is refuse for an answer that there is no room for. Those with a place for a region
// error have it there.
func refuseBusy(resp *response) *response {
	busy := regionErrorOf(&regionerr.BusyError{Reason: rpc.NoRoom})
	switch cmd := resp.Cmd.(type) {
	case *tikvpb.BatchCommandsResponse_Response_RawGet:
		cmd.RawGet = &kvrpcpb.RawGetResponse{RegionError: busy}
	case *tikvpb.BatchCommandsResponse_Response_RawBatchGet:
		cmd.RawBatchGet = &kvrpcpb.RawBatchGetResponse{RegionError: busy}
	case *tikvpb.BatchCommandsResponse_Response_RawScan:
		cmd.RawScan = &kvrpcpb.RawScanResponse{RegionError: busy}
	case *tikvpb.BatchCommandsResponse_Response_RawBatchScan:
		cmd.RawBatchScan = &kvrpcpb.RawBatchScanResponse{RegionError: busy}
	case *tikvpb.BatchCommandsResponse_Response_Get:
		cmd.Get = &kvrpcpb.GetResponse{RegionError: busy}
	case *tikvpb.BatchCommandsResponse_Response_BatchGet:
		cmd.BatchGet = &kvrpcpb.BatchGetResponse{RegionError: busy}
	case *tikvpb.BatchCommandsResponse_Response_Scan:
		cmd.Scan = &kvrpcpb.ScanResponse{RegionError: busy}
	case *tikvpb.BatchCommandsResponse_Response_ScanLock:
		cmd.ScanLock = &kvrpcpb.ScanLockResponse{RegionError: busy}
	default:
		return resp // no other is large
	}
	return resp
}

func regionErrorOf(err error) *errorpb.Error {
	region, _, _ := outcome(err)
	return region
}

// setError puts an error where the answer has a place for it. Clients give up at a message of the
// answer itself, and try another replica at a region error; for a store that stops, the latter is
// right.
func setError(answer reflect.Value, err error) {
	text := status.Convert(err).Message()
	if status.Code(err) != codes.Unavailable {
		for _, name := range []string{"Error", "OtherError", "Errors"} {
			f := answer.FieldByName(name)
			if !f.IsValid() {
				continue
			}
			switch f.Interface().(type) {
			case string:
				f.SetString(text)
			case *kvrpcpb.KeyError:
				f.Set(reflect.ValueOf(&kvrpcpb.KeyError{Abort: text}))
			case []*kvrpcpb.KeyError:
				f.Set(reflect.ValueOf([]*kvrpcpb.KeyError{{Abort: text}}))
			default:
				continue
			}
			return
		}
	}
	if f := answer.FieldByName("RegionError"); f.IsValid() {
		f.Set(reflect.ValueOf(&errorpb.Error{Message: text}))
	}
}
