package timeline

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/client"
	"github.com/tinykv/tinykv/pkg/trace"
)

func TestTimeline(t *testing.T) {
	began := time.Now()
	lines := Of(began, []client.Step{
		{Name: "route", Region: 2, Store: 1, Start: began, Took: 50 * time.Microsecond},
		{
			Name: "RawPut", Region: 2, Store: 1, Addr: "127.0.0.1:20160",
			Start: began.Add(60 * time.Microsecond), Took: time.Millisecond,
			Stages: []trace.Span{
				{Name: "request", Took: 800 * time.Microsecond},
				{Name: "wait", Start: 10 * time.Microsecond, Took: 20*time.Microsecond + 499},
			},
		},
		{Name: "RawPut", Start: began.Add(2 * time.Millisecond), Took: 0, Err: "not leader"},
	})
	var out bytes.Buffer
	require.NoError(t, Write(&out, lines))
	require.Equal(t, `START     TOOK      STEP       WHERE
0.000 ms  0.050 ms  route      region 2 at store 1
0.060 ms  1.000 ms  RawPut     region 2 at store 1 (127.0.0.1:20160)
0.160 ms  0.800 ms    request  
0.170 ms  0.020 ms    wait     
2.000 ms  0.000 ms  RawPut     : not leader
`, out.String())
	require.Equal(t, Line{Name: "wait", Stage: true, StartUS: 170, TookUS: 20.4}, lines[3])
	require.NotNil(t, Of(began, nil), "no lines are an empty list, also in JSON")
}
