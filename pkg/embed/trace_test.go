package embed

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	oteltrace "go.opentelemetry.io/otel/trace"

	"github.com/tinykv/tinykv/kv/client"
)

// stagesOf checks that the stages of the last step of a method lie within it, and returns their
// names.
func stagesOf(t *testing.T, tr *client.Trace, method string) []string {
	t.Helper()
	steps := tr.Steps()
	require.NotEmpty(t, steps)
	require.Equal(t, "route", steps[0].Name)
	last := steps[len(steps)-1]
	require.Equal(t, method, last.Name)
	require.Empty(t, last.Err)
	require.NotZero(t, last.Store)
	require.NotZero(t, last.Region)
	require.NotEmpty(t, last.Addr)
	var names []string
	for _, s := range last.Stages {
		require.LessOrEqual(t, last.Offset()+s.Start+s.Took, last.Took,
			"%s ends behind its request", s.Name)
		names = append(names, s.Name)
	}
	slices.Sort(names)
	return names
}

// TestTrace: a traced operation is answered with its stages at the store, one that is not has the
// same result.
func TestTrace(t *testing.T) {
	_, cl := begin(t, Config{})
	written := []string{"append-log", "apply", "apply-wait", "commit", "queue", "request", "wait"}

	ctx, tr := client.WithTrace(t.Context())
	require.NoError(t, cl.Put(ctx, []byte("k"), []byte("v")))
	require.Equal(t, written, stagesOf(t, tr, "RawPut"))

	ctx, tr = client.WithTrace(t.Context())
	_, swapped, err := cl.CompareAndSwap(ctx, []byte("k"), []byte("v"), []byte("w"))
	require.NoError(t, err)
	require.True(t, swapped)
	require.Equal(t, written, stagesOf(t, tr, "RawCAS"))

	ctx, tr = client.WithTrace(t.Context())
	v, found, err := cl.Get(ctx, []byte("k"))
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, "w", string(v))
	require.Subset(t, stagesOf(t, tr, "RawGet"), []string{"queue", "request"})

	ctx, tr = client.WithTrace(t.Context())
	pairs, err := cl.Scan(ctx, nil, nil, 10)
	require.NoError(t, err)
	require.Len(t, pairs, 1)
	require.Equal(t, []string{"queue", "read", "request", "take a view"},
		stagesOf(t, tr, "RawScan"))

	ctx, tr = client.WithTrace(t.Context())
	require.NoError(t, cl.Delete(ctx, []byte("k")))
	require.Equal(t, written, stagesOf(t, tr, "RawDelete"))
	require.NoError(t, cl.Put(t.Context(), []byte("k"), nil), "without a trace")
}

// TestSpans: an operation under a span that records becomes its children, and the stages theirs.
func TestSpans(t *testing.T) {
	_, cl := begin(t, Config{})
	got := tracetest.NewSpanRecorder()
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(got)).Tracer("test")
	ctx, parent := tracer.Start(context.Background(), "work")
	require.NoError(t, cl.Put(ctx, []byte("k"), []byte("v")))
	parent.End()
	spans := map[string]sdktrace.ReadOnlySpan{}
	for _, s := range got.Ended() {
		require.Equal(t, parent.SpanContext().TraceID(), s.SpanContext().TraceID())
		require.False(t, s.EndTime().Before(s.StartTime()))
		spans[s.Name()] = s // the last attempt's
	}
	put := spans["tinykv.RawPut"]
	require.NotNil(t, put)
	require.Equal(t, parent.SpanContext().SpanID(), put.Parent().SpanID())
	apply := spans["tinykv.store.apply"]
	require.NotNil(t, apply)
	require.Equal(t, put.SpanContext().SpanID(), apply.Parent().SpanID())
	require.False(t, apply.StartTime().Before(put.StartTime()))
	require.False(t, apply.EndTime().After(put.EndTime().Add(time.Microsecond)), "rounding aside")
	require.NotNil(t, spans["tinykv.route"])

	before := len(got.Ended())
	_, unsampled := sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample()),
		sdktrace.WithSpanProcessor(got)).
		Tracer("test").Start(context.Background(), "work")
	require.NoError(t,
		cl.Put(oteltrace.ContextWithSpan(context.Background(), unsampled), []byte("k"),
			[]byte("v")))
	require.Len(t, got.Ended(), before)
}
