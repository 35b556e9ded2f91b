package server

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
)

func TestTiming(t *testing.T) {
	var timing Timing
	timing.Note(100*time.Microsecond, 7)
	timing.Note(time.Second, 0)
	timing.End(codes.Unavailable, time.Second)
	timing.End(codes.Code(400), time.Second)
	timing.End(codes.OK, time.Millisecond)
	got := timing.Read()
	require.Equal(t, 1700*time.Microsecond, got.Total)
	require.Equal(t, map[codes.Code]uint64{codes.Unavailable: 1, codes.Unauthenticated: 1},
		got.Failed)
	var none *Timing
	none.Note(time.Second, 1)
	none.End(codes.Unknown, time.Second)
}

func TestSlowCalls(t *testing.T) {
	var slow []string
	s := New(Options{
		SlowAfter: time.Second,
		OnSlow: func(path string, took time.Duration, code codes.Code) {
			slow = append(slow, path+" "+took.String()+" "+code.String())
		},
	})
	timing := Timing{path: "/s/M", slow: &s.slow}
	timing.End(codes.OK, time.Second-1)
	timing.End(codes.OK, time.Second)
	timing.End(codes.DeadlineExceeded, 2*time.Second)
	require.Equal(t, []string{"/s/M 1s OK", "/s/M 2s DeadlineExceeded"}, slow)
	s.SetSlowAfter(0)
	timing.End(codes.OK, time.Hour)
	require.Len(t, slow, 2)
	s.SetSlowAfter(time.Millisecond)
	timing.End(codes.OK, time.Millisecond-1)
	timing.End(codes.OK, time.Millisecond)
	require.Equal(t, "/s/M 1ms OK", slow[2])
	require.Len(t, slow, 3)
}
