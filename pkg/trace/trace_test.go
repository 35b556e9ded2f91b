package trace

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/metadata"
)

func TestRecorder(t *testing.T) {
	came := time.Now()
	ctx := With(context.Background(), New(came))
	r := From(ctx)
	r.Add("wait", came.Add(2*time.Millisecond), 3*time.Millisecond)
	r.Add("before it came", came.Add(-time.Second), -1)
	require.Equal(t, []Span{
		{Name: "wait", Start: 2 * time.Millisecond, Took: 3 * time.Millisecond},
		{Name: "before it came"},
	}, Spans(r.Metadata()))
	r.Begin("more")()
	require.Len(t, Spans(r.Metadata()), 3)
	for range 2 * maxSpans {
		r.Add("x", came, 0)
	}
	require.Len(t, Spans(r.Metadata()), maxSpans)
}

func TestNothingIsRecordedUnasked(t *testing.T) {
	r := From(context.Background())
	require.Nil(t, r)
	r.Add("x", time.Now(), 0)
	r.Begin("x")()
	require.False(t, Asked(nil))
	require.False(t, Asked(metadata.Pairs("other", "1")))
	require.True(t, Asked(metadata.Pairs(Ask, "1")))
}

func TestForeignTrailers(t *testing.T) {
	require.Empty(t, Spans(nil))
	require.Empty(t, Spans(metadata.MD{Trailer: {"", "{", "7", `{"name":1}`}}))
	require.Len(t, Spans(metadata.MD{Trailer: {"{", `[{"name":"x"}]`}}), 1)
}
