package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
	"github.com/tinykv/tinykv/kv/client"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// long is the form of the attacks that make attack runs.
func long() bool { return os.Getenv("ATTACK") != "" }

// attacked is a cluster of three stores for an attack. In the long form they have the default
// sizes.
func attacked(t *testing.T) *localcluster.Cluster {
	t.Helper()
	if long() {
		return startConfigured(t, 3, 1, fastBeats)
	}
	return start(t, 3)
}

// slowestSync is the longest that a sync of the disk took, of one after the other while work ran.
func slowestSync(t *testing.T, work func()) time.Duration {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "sync"))
	require.NoError(t, err)
	defer f.Close()
	done := make(chan struct{})
	slowest := make(chan time.Duration, 1)
	go func() { // ends with work
		longest := time.Duration(0)
		for block := make([]byte, 4<<10); ; {
			select {
			case <-done:
				slowest <- longest
				return
			case <-time.After(5 * time.Millisecond):
			}
			start := time.Now()
			if _, err := f.WriteAt(block, 0); err != nil {
				t.Errorf("writing beside the stores: %v", err)
			}
			if err := f.Sync(); err != nil {
				t.Errorf("syncing beside the stores: %v", err)
			}
			longest = max(longest, time.Since(start))
		}
	}()
	work()
	close(done)
	return <-slowest
}

// resident is the memory of a process now, and the most it had, in MiB.
func resident(t *testing.T, p *localcluster.Process) (now, most int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	require.NoError(t, err)
	field := func(name string) int {
		_, rest, _ := strings.Cut(string(status), name+":")
		n, err := strconv.Atoi(strings.Fields(rest)[0])
		require.NoError(t, err)
		return n >> 10
	}
	return field("VmRSS"), field("VmHWM")
}

// attacker is a client that makes calls by hand and takes nothing.
type attacker struct {
	nc  net.Conn
	fr  *http2.Framer
	enc *hpack.Encoder
	buf bytes.Buffer
}

func newAttacker(t *testing.T, addr string, window uint32) *attacker {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = nc.Close() })
	a := &attacker{nc: nc, fr: http2.NewFramer(nc, nc)}
	a.enc = hpack.NewEncoder(&a.buf)
	_, err = nc.Write([]byte(http2.ClientPreface))
	require.NoError(t, err)
	require.NoError(t,
		a.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window}))
	require.NoError(t, a.fr.WriteWindowUpdate(0, 1<<30))
	return a
}

// call sends the headers of a call and a part of its request.
func (a *attacker) call(id uint32, method string, message []byte, whole bool) error {
	a.buf.Reset()
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"},
		{":path", "/tinykvpb.TinyKv/" + method},
		{":authority", "x"}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
		if err := a.enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			return err
		}
	}
	err := a.fr.WriteHeaders(http2.HeadersFrameParam{
		StreamID: id, BlockFragment: a.buf.Bytes(), EndHeaders: true,
	})
	for len(message) > 16<<10 && err == nil {
		err = a.fr.WriteData(id, false, message[:16<<10])
		message = message[16<<10:]
	}
	if err == nil {
		err = a.fr.WriteData(id, whole, message)
	}
	return err
}

// framed puts gRPC's prefix before a message that has size bytes in all.
func framed(body []byte, size int) []byte {
	out := make([]byte, 5, 5+len(body))
	binary.BigEndian.PutUint32(out[1:], uint32(size))
	return append(out, body...)
}

// half begins a put of size bytes and sends half of it, as far as it is given windows.
func (a *attacker) half(c *kvrpcpb.Context, size int) error {
	body, err := (&kvrpcpb.RawPutRequest{
		Context: c, Key: []byte("half"), Value: make([]byte, size),
	}).Marshal()
	if err != nil {
		return err
	}
	const first = 60 << 10
	if err := a.call(1, "RawPut", framed(body[:first], len(body)), false); err != nil {
		return err
	}
	body = body[first : len(body)/2]
	for room := 0; len(body) > 0; {
		f, err := a.fr.ReadFrame()
		if err != nil {
			return err
		}
		if w, ok := f.(*http2.WindowUpdateFrame); ok && w.StreamID == 1 {
			room += int(w.Increment)
		}
		for n := min(room, len(body), 16<<10); n > 0; n = min(room, len(body), 16<<10) {
			if err := a.fr.WriteData(1, false, body[:n]); err != nil {
				return err
			}
			body, room = body[n:], room-n
		}
	}
	return nil
}

// contextOf is what a request for a key's region must have, and the store that leads it.
func contextOf(
	t *testing.T, c *localcluster.Cluster, cl *client.Client, key string,
) (*kvrpcpb.Context, *localcluster.Process) {
	t.Helper()
	r, err := cl.Placement().GetRegion(t.Context(), []byte(key))
	require.NoError(t, err)
	require.NotNil(t, r.Leader)
	store, err := cl.Placement().GetStore(t.Context(), r.Leader.StoreId)
	require.NoError(t, err)
	for _, p := range c.Stores {
		if p.Addr == store.GetAddress() {
			return &kvrpcpb.Context{
				RegionId: r.Meta.Id, RegionEpoch: r.Meta.RegionEpoch, Peer: r.Leader,
			}, p
		}
	}
	require.FailNow(t, "the leader's store is not one of ours")
	return nil, nil
}

// smallWork gets and puts small values for a time, and returns the 99th percentile and the
// failures.
func smallWork(t *testing.T, cl *client.Client, d time.Duration) (p99 time.Duration, ops int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d+20*time.Second)
	defer cancel()
	var mu sync.Mutex
	var took []time.Duration
	var wg sync.WaitGroup
	end := time.Now().Add(d)
	for w := range 4 {
		wg.Go(func() {
			key, value := fmt.Appendf(nil, "small-%d", w), make([]byte, 128)
			for time.Now().Before(end) {
				start := time.Now()
				err := cl.Put(ctx, key, value)
				if err == nil {
					_, _, err = cl.Get(ctx, key)
				}
				if err != nil {
					t.Errorf("small work: %v", err)
					return
				}
				mu.Lock()
				took = append(took, time.Since(start))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	slices.Sort(took)
	require.NotEmpty(t, took)
	return took[len(took)*99/100], len(took)
}

// TestAttackHalfRequestsAndUnreadAnswers: many clients begin puts of 15 MiB and never end them, as
// many scan 12 MiB and read nothing. The store stays small, and others go on.
func TestAttackHalfRequestsAndUnreadAnswers(t *testing.T) {
	conns, d := 200, 3*time.Second
	if long() {
		conns, d = 1000, 60*time.Second
	}
	c := attacked(t)
	cl := open(t, c)
	require.NoError(t, cl.Put(t.Context(), []byte("a"), nil))
	waitReplicas(t, c, 3)
	for i := range 200 {
		require.NoError(t, cl.Put(t.Context(), fmt.Appendf(nil, "k%04d", i), make([]byte, 64<<10)))
	}
	before, ops := smallWork(t, cl, d/2)
	kctx, store := contextOf(t, c, cl, "k")
	rss, _ := resident(t, store)
	t.Logf("before: %d MiB, p99 %v of %d", rss, before, ops)

	scan, err := (&kvrpcpb.RawScanRequest{
		Context: kctx, StartKey: []byte("k"), Limit: 190,
	}).Marshal()
	require.NoError(t, err)
	for i := range conns {
		a := newAttacker(t, store.Addr, 1<<30)
		if i%2 == 0 {
			require.NoError(t, a.call(1, "RawScan", framed(scan, len(scan)), true))
		} else {
			go func() { _ = a.half(kctx, 15<<20) }() // ends with its connection
		}
	}
	limit := 3 * before
	var after time.Duration
	slowest := slowestSync(t, func() { after, ops = smallWork(t, cl, d) })
	if !long() {
		// A single hang of the machine, and the syncs of other packages' tests: a put waits for the
		// leader's and a follower's.
		limit += 20*time.Millisecond + 2*slowest
	}
	rss, most := resident(t, store)
	t.Logf("%d connections: %d MiB, at most %d; p99 %v of %d, slowest sync of the disk %v", conns,
		rss, most, after, ops, slowest)
	require.Less(t, most, 400, "MiB")
	require.Less(t, after, limit)
}

// elections counts how often a peer became leader without a reason: no new region, no transfer that
// was ordered.
func elections(t *testing.T, c *localcluster.Cluster) int {
	t.Helper()
	became, transfers := 0, 0
	regions := map[string]bool{}
	var told []string
	for _, p := range c.Stores {
		log, err := os.ReadFile(p.LogFile)
		require.NoError(t, err)
		for line := range strings.Lines(string(log)) {
			switch {
			case strings.Contains(line, "became leader"):
				became++
				_, region, _ := strings.Cut(line, `"region-id": `)
				region, _, _ = strings.Cut(region, ",")
				regions[region] = true
			case strings.Contains(line, "transferring leadership"):
				transfers++
			default:
				continue
			}
			told = append(told, p.Name+" "+strings.TrimSpace(line))
		}
	}
	without := became - transfers - len(regions)
	if without > 0 {
		t.Log(strings.Join(told, "\n"))
	}
	return without
}

// TestAttackLargeWriters: many writers of 8 MiB values. Writes succeed or are refused as busy,
// leaders stay, and the stores stay small.
func TestAttackLargeWriters(t *testing.T) {
	writers, each := 16, 1
	if long() {
		writers, each = 128, 2
	}
	c := attacked(t)
	cl := open(t, c)
	require.NoError(t, cl.Put(t.Context(), []byte("a"), nil))
	waitReplicas(t, c, 3)
	begin := time.Now()
	value := make([]byte, 8<<20-64<<10)
	rnd := rand.NewChaCha8([32]byte{1}) // what compression cannot make smaller
	_, _ = rnd.Read(value)
	var done, busy atomic.Int64
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
				err := cl.Put(ctx, fmt.Appendf(nil, "w%03d-%d", w, i), value)
				cancel()
				switch {
				case err == nil:
					done.Add(1)
				case !client.IsUnknown(err) && strings.Contains(err.Error(), "busy") &&
					!errors.Is(err, context.Canceled):
					busy.Add(1)
				default:
					t.Errorf("writer %d: %v", w, err)
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(begin)
	t.Logf("%d writers: %d writes and %d refused as busy in %v", writers, done.Load(), busy.Load(),
		took.Round(time.Millisecond))
	for _, p := range c.Stores {
		now, most := resident(t, p)
		t.Logf("%s: %d MiB, at most %d", p.Name, now, most)
		require.Less(t, most, 1024, "MiB")
	}
	require.Positive(t, done.Load())
	n := elections(t, c)
	t.Logf("%d leaders changed without a reason", max(n, 0))
	if long() { // of a machine that does nothing else
		require.LessOrEqual(t, n, 0, "leaders changed")
	}
}
