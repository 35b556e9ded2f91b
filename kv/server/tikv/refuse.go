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

// refuse makes an answer of a request's kind that carries an error: a stream goes on although one
// of its requests cannot be answered, and clients know answers of the right kind only. Nil if the
// request is of no kind known.
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
	wrapper := reflect.New(t)
	answer := reflect.New(wrapper.Elem().Field(0).Type().Elem())
	wrapper.Elem().Field(0).Set(answer)
	setError(answer.Elem(), err)
	resp := &tikvpb.BatchCommandsResponse_Response{}
	reflect.ValueOf(resp).Elem().FieldByName("Cmd").Set(wrapper)
	return resp
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
