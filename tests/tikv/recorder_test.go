package tikv

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/pingcap/kvproto/pkg/errorpb"
	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"github.com/pingcap/kvproto/pkg/tikvpb"
	"google.golang.org/grpc"
)

// step is an operation on one key as the checker knows it: "get", "put", "delete" or "swap". What a
// swap expects, or a get finds, has found false where there is no value.
type step struct {
	kind, key, value string
	expected         cell
}

// cell is what a key has.
type cell struct {
	value string
	found bool
}

// result of a step: what a get has found, or a swap before it.
type result struct {
	unknown, swapped bool
	was              cell
}

var model = porcupine.Model{
	Partition: func(ops []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[string][]porcupine.Operation{}
		for _, op := range ops {
			k := op.Input.(step).key
			byKey[k] = append(byKey[k], op)
		}
		var out [][]porcupine.Operation
		for _, list := range byKey {
			out = append(out, list)
		}
		return out
	},
	Init:  func() any { return cell{} },
	Equal: func(a, b any) bool { return a == b },
	Step: func(state, input, output any) (bool, any) {
		in, out, now := input.(step), output.(result), state.(cell)
		switch in.kind {
		case "put":
			return true, cell{in.value, true}
		case "delete":
			return true, cell{}
		case "swap":
			swaps, next := now == in.expected, now
			if swaps {
				next = cell{in.value, true}
			}
			return out.unknown || out.swapped == swaps && out.was == now, next
		}
		return out.was == now, now
	},
}

// recorder keeps the history of both kinds of clients. Of client-go it records each request that it
// sends, not each call of its API: it sends requests again whose outcome it does not know, so that
// one call may be carried out twice. A request that is lost is an operation of unknown outcome,
// which may take effect at any later time.
type recorder struct {
	began time.Time
	mu    sync.Mutex
	ops   []porcupine.Operation
	// known and unknown count by kind and client: "put of client-go".
	known, unknown map[string]int
	streams        []*recordedStream
}

func newRecorder() *recorder {
	return &recorder{began: time.Now(), known: map[string]int{}, unknown: map[string]int{}}
}

func (r *recorder) now() int64 { return int64(time.Since(r.began)) }

// add records a step that was called at a time and has ended now. What is not known of reads says
// nothing.
func (r *recorder) add(who string, in step, called int64, out result) {
	ended := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if out.unknown {
		r.unknown[in.kind+" of "+who]++
		if in.kind == "get" {
			return
		}
		ended = 1 << 62
	} else {
		r.known[in.kind+" of "+who]++
	}
	r.ops = append(r.ops, porcupine.Operation{Input: in, Call: called, Output: out, Return: ended})
}

// answered counts the requests of client-go, the slower one of the two, whose outcome is known.
func (r *recorder) answered() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for what, k := range r.known {
		if strings.HasSuffix(what, goClient) {
			n += k
		}
	}
	return n
}

func (r *recorder) check(t *testing.T) {
	t.Helper()
	r.mu.Lock()
	streams := r.streams
	r.mu.Unlock()
	for _, s := range streams {
		s.lose() // what is not answered yet may have been carried out
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	t.Logf("%d operations; known %v; unknown %v", len(r.ops), r.known, r.unknown)
	if got := r.verdict(); got != porcupine.Ok {
		t.Errorf("the history is not linearizable: %s", got)
	}
}

func (r *recorder) verdict() porcupine.CheckResult {
	return porcupine.CheckOperationsTimeout(model, r.ops, time.Minute)
}

const goClient = "client-go"

// notDone tells whether a region error says that nothing was carried out. StaleCommand does not:
// the leader has changed.
func notDone(e *errorpb.Error) bool {
	return e.NotLeader != nil || e.RegionNotFound != nil || e.KeyNotInRegion != nil ||
		e.EpochNotMatch != nil || e.ServerIsBusy != nil || e.StoreNotMatch != nil
}

// answer records the answer to a request; e and text are its region error and its message.
func (r *recorder) answer(in step, called int64, e *errorpb.Error, text string, out result) {
	switch {
	case e != nil && notDone(e):
		return
	case e != nil || text != "":
		out = result{unknown: true}
	}
	r.add(goClient, in, called, out)
}

func one(pairs []*kvrpcpb.KvPair) result {
	if len(pairs) == 0 {
		return result{}
	}
	return result{was: cell{string(pairs[0].Value), true}}
}

// commandStep is the step that a command of a batch makes; false if it is none of those that are
// recorded.
func commandStep(req *tikvpb.BatchCommandsRequest_Request) (step, bool) {
	switch cmd := req.Cmd.(type) {
	case *tikvpb.BatchCommandsRequest_Request_RawGet:
		return step{kind: "get", key: string(cmd.RawGet.Key)}, true
	case *tikvpb.BatchCommandsRequest_Request_RawScan:
		return step{kind: "get", key: string(cmd.RawScan.StartKey)}, true
	case *tikvpb.BatchCommandsRequest_Request_RawPut:
		return step{kind: "put", key: string(cmd.RawPut.Key), value: string(cmd.RawPut.Value)}, true
	case *tikvpb.BatchCommandsRequest_Request_RawDelete:
		return step{kind: "delete", key: string(cmd.RawDelete.Key)}, true
	}
	return step{}, false
}

func (r *recorder) command(in step, called int64, resp *tikvpb.BatchCommandsResponse_Response) {
	switch cmd := resp.Cmd.(type) {
	case *tikvpb.BatchCommandsResponse_Response_RawGet:
		a := cmd.RawGet
		r.answer(in, called, a.RegionError, a.Error,
			result{was: cell{string(a.Value), !a.NotFound}})
	case *tikvpb.BatchCommandsResponse_Response_RawScan:
		r.answer(in, called, cmd.RawScan.RegionError, "", one(cmd.RawScan.Kvs))
	case *tikvpb.BatchCommandsResponse_Response_RawPut:
		r.answer(in, called, cmd.RawPut.RegionError, cmd.RawPut.Error, result{})
	case *tikvpb.BatchCommandsResponse_Response_RawDelete:
		r.answer(in, called, cmd.RawDelete.RegionError, cmd.RawDelete.Error, result{})
	}
}

// unary records compare-and-swaps, which client-go does not put into batches.
func (r *recorder) unary(
	ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption,
) error {
	called := r.now()
	err := invoke(ctx, method, req, reply, cc, opts...)
	swap, ok := req.(*kvrpcpb.RawCASRequest)
	if !ok {
		return err
	}
	in := step{kind: "swap", key: string(swap.Key), value: string(swap.Value)}
	in.expected = cell{string(swap.PreviousValue), !swap.PreviousNotExist}
	if err != nil {
		r.add(goClient, in, called, result{unknown: true})
		return err
	}
	resp := reply.(*kvrpcpb.RawCASResponse)
	r.answer(in, called, resp.RegionError, resp.Error, result{
		swapped: resp.Succeed, was: cell{string(resp.PreviousValue), !resp.PreviousNotExist},
	})
	return nil
}

// stream has the commands of batches recorded.
func (r *recorder) stream(
	ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption,
) (grpc.ClientStream, error) {
	s, err := open(ctx, desc, cc, method, opts...)
	if err != nil || !strings.HasSuffix(method, "/BatchCommands") {
		return s, err
	}
	out := &recordedStream{ClientStream: s, r: r, open: map[uint64]openStep{}}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.streams = append(r.streams, out)
	return out, nil
}

type openStep struct {
	step
	called int64
}

// recordedStream is a stream of batches. Its mutex guards open, the commands without an answer, by
// their ids, and lost. Lock order: recordedStream.mu < recorder.mu.
type recordedStream struct {
	grpc.ClientStream
	r    *recorder
	mu   sync.Mutex
	open map[uint64]openStep
	lost bool
}

func (s *recordedStream) SendMsg(m any) error {
	if req, ok := m.(*tikvpb.BatchCommandsRequest); ok {
		s.mu.Lock()
		for i, cmd := range req.Requests {
			if in, ok := commandStep(cmd); ok {
				s.open[req.RequestIds[i]] = openStep{in, s.r.now()}
			}
		}
		if s.lost {
			s.loseLocked()
		}
		s.mu.Unlock()
	}
	err := s.ClientStream.SendMsg(m)
	if err != nil {
		s.lose()
	}
	return err
}

func (s *recordedStream) RecvMsg(m any) error {
	if err := s.ClientStream.RecvMsg(m); err != nil {
		s.lose()
		return err
	}
	if resp, ok := m.(*tikvpb.BatchCommandsResponse); ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		for i, id := range resp.RequestIds {
			if in, ok := s.open[id]; ok {
				delete(s.open, id)
				s.r.command(in.step, in.called, resp.Responses[i])
			}
		}
	}
	return nil
}

// lose is called when the stream has ended: no answer comes any more.
func (s *recordedStream) lose() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost = true
	s.loseLocked()
}

func (s *recordedStream) loseLocked() {
	for id, in := range s.open {
		delete(s.open, id)
		s.r.add(goClient, in.step, in.called, result{unknown: true})
	}
}

// The checker takes what may have happened, and finds what cannot have.
func TestRecorder(t *testing.T) {
	put := func(v string) step { return step{kind: "put", key: "k", value: v} }
	get, swap := step{kind: "get", key: "k"},
		step{kind: "swap", key: "k", value: "2", expected: cell{"1", true}}
	has := func(v string) result { return result{was: cell{v, true}} }
	type did struct {
		step
		result
	}
	for name, tc := range map[string]struct {
		want porcupine.CheckResult
		done []did
	}{
		"put, get": {porcupine.Ok, []did{{put("1"), result{}}, {get, has("1")}}},
		"stale get": {
			porcupine.Illegal, []did{{put("1"), result{}}, {put("2"), result{}}, {get, has("1")}},
		},
		"late put": {
			porcupine.Ok,
			[]did{{put("1"), result{unknown: true}}, {get, result{}}, {get, has("1")}},
		},
		"late put, twice": {
			porcupine.Illegal,
			[]did{
				{put("1"), result{unknown: true}}, {get, has("1")}, {put("2"), result{}},
				{get, has("1")},
			},
		},
		"two requests of a call": {
			porcupine.Ok,
			[]did{
				{put("1"), result{unknown: true}}, {get, has("1")}, {put("2"), result{}},
				{put("1"), result{}}, {get, has("1")},
			},
		},
		"swap": {
			porcupine.Ok,
			[]did{
				{put("1"), result{}}, {swap, result{swapped: true, was: cell{"1", true}}},
				{get, has("2")},
			},
		},
		"swap that did not": {
			porcupine.Illegal, []did{{put("1"), result{}}, {swap, has("1")}},
		},
		"swap of a lost answer": {
			porcupine.Ok,
			[]did{{put("1"), result{}}, {swap, result{unknown: true}}, {swap, has("2")}},
		},
		"swap that was forgotten": {
			porcupine.Illegal, []did{{put("1"), result{}}, {swap, has("2")}},
		},
	} {
		r := newRecorder()
		for _, d := range tc.done {
			r.add("test", d.step, r.now(), d.result)
		}
		if got := r.verdict(); got != tc.want {
			t.Errorf("%s: %s", name, got)
		}
	}
}
