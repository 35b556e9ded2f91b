package top

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestWrite(t *testing.T) {
	v := &View{
		HealthStatus: "healthy",
		MostWritten: []Region{
			{ID: 4, Leader: 2, Written: 4096}, {ID: 9, Leader: 1, Start: "k", Written: 7},
		},
	}
	v.Point = Point{
		Time: time.Date(2026, 12, 1, 10, 0, 0, 0, time.Local), Used: 3000, Regions: 7, Operators: 1,
		Reads: Requests{PerSecond: 1234.4, P50: 12.2, P99: 1500}, Writes: Requests{PerSecond: 0},
		Stores: []Store{
			{ID: 1, Reads: 4, Leaders: 3, Regions: 7, Used: 1000},
			{ID: 2, Reads: 1230, Leaders: 4, Regions: 7, Used: 2000},
		},
	}
	var out bytes.Buffer
	require.NoError(t, Write(&out, v, func(n uint64) string { return fmt.Sprintf("%d B", n) }))
	require.Equal(t, `10:00:00  healthy
3000 B, 7 regions, 1 operators running

        A SECOND  MEDIAN  P99
reads   1234      12 µs   1.5 ms
writes  0         -       -

STORE  READS/S  WRITES/S  LEADERS  REGIONS  DATA
2      1230     0         4        7        2000 B
1      4        0         3        7        1000 B

MOST WRITTEN  BYTES   LEADER   FROM
region 4      4096 B  store 2  the first key
region 9      7 B     store 1  k
`, out.String())
}
