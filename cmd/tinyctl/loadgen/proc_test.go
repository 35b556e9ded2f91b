package loadgen

import (
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestParseStat(t *testing.T) {
	const line = "4711 (odd ) name) S 1 4711 4711 0 -1 4194560 5 0 0 0 150 50 0 0 20 0 12 0 100 1234567 300 18446744073709551615 1 1"
	cpu, rss, err := parseStat(line)
	require.NoError(t, err)
	require.Equal(t, 2.0, cpu)
	require.EqualValues(t, 300*os.Getpagesize(), rss)
	for _, bad := range []string{
		"", "1 (x) S 1 2", "1 (x) S 1 1 1 0 -1 1 5 0 0 0 a 50 0 0 20 0 12 0 100 1234567 300 1",
	} {
		_, _, err := parseStat(bad)
		require.Error(t, err, bad)
	}
}

func TestParseBusy(t *testing.T) {
	busy, err := parseBusy("cpu  100 10 200 99999 5000 3 7 20 55 0\ncpu0 1 2 3\n")
	require.NoError(t, err)
	require.Equal(t, 3.4, busy, "neither idle nor waiting, and guests are in user already")
	for _, bad := range []string{"", "cpu 1 2", "cpu 1 2 x 4 5 6", "intr 1 2 3 4 5 6"} {
		_, err := parseBusy(bad)
		require.Error(t, err, bad)
	}
}

func TestListenInodes(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:094B 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0000000000000000 100 0 0 10 0
   1: 0100007F:094B 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 222 1 0000000000000000 20 4 30 10 -1
   2: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 333 1 0000000000000000 100 0 0 10 0
`
	require.Equal(t, []string{"111"}, listenInodes(table, 2379))
	require.Equal(t, []string{"333"}, listenInodes(table, 80))
	require.Empty(t, listenInodes(table, 81))
}

// TestListenerPIDs finds this process by its port, once for two ports, and nothing elsewhere.
func TestListenerPIDs(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc")
	}
	var addrs []string
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close()
		addrs = append(addrs, l.Addr().String())
	}
	require.Equal(t, []int{os.Getpid()}, ListenerPIDs(addrs))
	_, port, err := net.SplitHostPort(addrs[0])
	require.NoError(t, err)
	require.Empty(t, ListenerPIDs([]string{"192.0.2.1:" + port, "no address", "127.0.0.1:http"}))
}

func TestProcessUsage(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc")
	}
	_, rss, err := ProcessUsage(os.Getpid())
	require.NoError(t, err)
	require.Greater(t, rss, int64(1<<20))
	_, twice, err := ProcessUsage(os.Getpid(), os.Getpid())
	require.NoError(t, err)
	require.Greater(t, twice, rss)
	_, _, err = ProcessUsage(1 << 30)
	require.Error(t, err)
}

// TestUsage: what is between two samples, per thousand operations; what cannot be known stays
// absent.
func TestUsage(t *testing.T) {
	at := time.Now()
	from := sample{at: at, ok: true, selfOK: true, servers: 10, self: 1, machine: 100}
	to := sample{
		at: at.Add(2 * time.Second), ok: true, selfOK: true, servers: 12, rss: 99, self: 1.5,
		machine: 103.5,
	}
	r := Result{Ops: 4000}
	r.setUsage(from, to)
	require.InDelta(t, 0.5, *r.ServerCPUPerKop, 1e-9)
	require.EqualValues(t, 99, *r.ServerRSS)
	require.InDelta(t, 0.125, *r.ClientCPUPerKop, 1e-9)
	require.InDelta(t, 0.5, *r.OtherCPU, 1e-9, "1 s of 3.5 s was neither the servers' nor ours")

	r = Result{Ops: 4000}
	from.ok, to.selfOK = false, false
	r.setUsage(from, to)
	require.Nil(t, r.ServerCPUPerKop)
	require.Nil(t, r.ServerRSS)
	require.Nil(t, r.ClientCPUPerKop)
	require.Nil(t, r.OtherCPU)
}
