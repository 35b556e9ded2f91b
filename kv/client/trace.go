package client

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	oteltrace "go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/tinykv/tinykv/pkg/trace"
	"github.com/tinykv/tinykv/proto/pkg/errorpb"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// Step is a part of an operation, as its client saw it.
type Step struct {
	// Name is the method that was called; "route" is finding the region, its leader and a way to
	// that.
	Name string
	// Store is the id of the store that was called, Addr its address, Region the region that was
	// meant. 0 and empty where they are not known.
	Store  uint64
	Addr   string
	Region uint64
	Start  time.Time
	Took   time.Duration
	// Err is how the step failed, empty if it did not.
	Err string
	// Stages are those of the request at the store, in the order of their beginning. Their times
	// count from the moment at which the store had the request. Stores that know no traces, and
	// requests that failed on the way, have none.
	Stages []trace.Span
}

// Trace gathers the steps of the operations of a context. Safe for concurrent use.
type Trace struct {
	mu    sync.Mutex
	steps []Step
}

// maxSteps bounds what one Trace gathers; further steps are left out.
const maxSteps = 1024

type traceKey struct{}

// WithTrace returns a context whose operations are traced. Each of their requests is a call of its
// own, and the stores answer with the stages of each. An operation whose context has an
// OpenTelemetry span that records is traced by itself: its steps and stages become children of the
// span.
func WithTrace(ctx context.Context) (context.Context, *Trace) {
	t := new(Trace)
	return context.WithValue(ctx, traceKey{}, t), t
}

// Steps are what was gathered until now, in the order of their ends.
func (t *Trace) Steps() []Step {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]Step(nil), t.steps...)
}

func (t *Trace) add(s Step) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.steps) < maxSteps {
		t.steps = append(t.steps, s)
	}
}

// traceOf is the trace of a context; nil if it has none.
func traceOf(ctx context.Context) *Trace {
	t, _ := ctx.Value(traceKey{}).(*Trace)
	return t
}

// traced begins the trace of an operation for an OpenTelemetry span, if the context has one. end
// makes the steps its children.
func traced(ctx context.Context) (_ context.Context, end func()) {
	parent := oteltrace.SpanFromContext(ctx)
	if !parent.IsRecording() || traceOf(ctx) != nil {
		return ctx, nil
	}
	ctx, t := WithTrace(ctx)
	return ctx, func() {
		t.export(ctx, parent.TracerProvider().Tracer("github.com/tinykv/tinykv/kv/client"))
	}
}

// export makes spans of the steps. The stages of a request lie in the middle of its time: what is
// left is the network's.
func (t *Trace) export(ctx context.Context, tracer oteltrace.Tracer) {
	for _, s := range t.Steps() {
		sctx, span := tracer.Start(ctx, "tinykv."+s.Name,
			oteltrace.WithTimestamp(s.Start), oteltrace.WithSpanKind(oteltrace.SpanKindClient))
		for _, a := range []struct {
			key string
			id  uint64
		}{{"tinykv.store", s.Store}, {"tinykv.region", s.Region}} {
			if a.id > 0 {
				span.SetAttributes(attribute.String(a.key, fmt.Sprint(a.id)))
			}
		}
		if s.Addr != "" {
			span.SetAttributes(attribute.String("server.address", s.Addr))
		}
		if s.Err != "" {
			span.SetStatus(codes.Error, s.Err)
		}
		for _, st := range s.Stages {
			start := s.Start.Add(s.Offset() + st.Start)
			_, child := tracer.Start(sctx, "tinykv.store."+st.Name, oteltrace.WithTimestamp(start))
			child.End(oteltrace.WithTimestamp(start.Add(st.Took)))
		}
		span.End(oteltrace.WithTimestamp(s.Start.Add(s.Took)))
	}
}

// Offset is about how long the request was on its way: half of what it took and the store does not
// account for.
func (s *Step) Offset() time.Duration {
	var end time.Duration
	for _, st := range s.Stages {
		end = max(end, st.Start+st.Took)
	}
	return max(s.Took-end, 0) / 2
}

// tracedStub is the service of a store for traced requests.
func tracedStub(
	conn grpc.ClientConnInterface, t *Trace, storeID uint64, addr string,
) tinykvpb.TinyKvClient {
	return tinykvpb.NewTinyKvClient(tracedConn{
		ClientConnInterface: conn, t: t, store: storeID, addr: addr,
	})
}

// tracedConn records its unary calls, and asks the store for their stages.
type tracedConn struct {
	grpc.ClientConnInterface
	t     *Trace
	store uint64
	addr  string
}

// Invoke implements grpc.ClientConnInterface.
func (c tracedConn) Invoke(
	ctx context.Context, method string, args, reply any, opts ...grpc.CallOption,
) error {
	var trailer metadata.MD
	step := Step{
		Name: method[strings.LastIndexByte(method, '/')+1:], Store: c.store, Addr: c.addr,
		Start: time.Now(),
	}
	if r, ok := args.(interface{ GetContext() *kvrpcpb.Context }); ok {
		step.Region = r.GetContext().GetRegionId()
	}
	ctx = metadata.AppendToOutgoingContext(ctx, trace.Ask, "1")
	err := c.ClientConnInterface.Invoke(ctx, method, args, reply,
		append(opts, grpc.Trailer(&trailer))...)
	step.Took = time.Since(step.Start)
	if err != nil {
		step.Err = err.Error()
	} else if r, ok := reply.(interface{ GetRegionError() *errorpb.Error }); ok &&
		r.GetRegionError() != nil {
		step.Err = regionError(r.GetRegionError()).Error()
	}
	step.Stages = trace.Spans(trailer)
	slices.SortStableFunc(step.Stages, func(a, b trace.Span) int {
		return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(b.Took, a.Took))
	})
	c.t.add(step)
	return err
}

// routed records how a request's region was found.
func (t *Trace) routed(start time.Time, r *cachedRegion, err error) {
	step := Step{Name: "route", Start: start, Took: time.Since(start)}
	if r != nil {
		step.Region, step.Store = r.meta.Id, r.leader.GetStoreId()
	}
	if err != nil {
		step.Err = err.Error()
	}
	t.add(step)
}
