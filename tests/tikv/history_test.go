package tikv

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pingcap/kvproto/pkg/metapb"
	"github.com/pingcap/kvproto/pkg/pdpb"
	"github.com/stretchr/testify/require"
	"github.com/tikv/client-go/v2/config"
	"github.com/tikv/client-go/v2/rawkv"
	"google.golang.org/grpc"
)

// natives is a process of this project's own client, see tests/nativeclient.
type natives struct {
	in io.Writer
	mu sync.Mutex
	// waiting are the callers, by the ids of their operations; nil once the process has ended.
	waiting map[uint64]chan<- *nativeOutcome
	next    uint64
}

type nativeOp struct {
	ID       uint64 `json:"id"`
	Kind     string `json:"kind"`
	Key      []byte `json:"key"`
	Value    []byte `json:"value"`
	Expected []byte `json:"expected"`
}

type nativeOutcome struct {
	ID      uint64 `json:"id"`
	Found   bool   `json:"found"`
	Value   []byte `json:"value"`
	Swapped bool   `json:"swapped"`
	Error   string `json:"error"`
	Unknown bool   `json:"unknown"`
}

func startNatives(t *testing.T, c *cluster) *natives {
	t.Helper()
	cmd := exec.Command(filepath.Join(binDir, "nativeclient"), c.scheduler.addr)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	n := &natives{in: in, waiting: map[uint64]chan<- *nativeOutcome{}}
	read := make(chan struct{})
	go func() { // ends with the process
		defer close(read)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			got := new(nativeOutcome)
			if err := json.Unmarshal(lines.Bytes(), got); err != nil {
				t.Errorf("the native client says %q: %v", lines.Bytes(), err)
				return
			}
			n.mu.Lock()
			n.waiting[got.ID] <- got
			delete(n.waiting, got.ID)
			n.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		_ = in.Close()
		<-read
		require.NoError(t, cmd.Wait())
	})
	return n
}

func (n *natives) do(op nativeOp) (*nativeOutcome, error) {
	answer := make(chan *nativeOutcome, 1)
	n.mu.Lock()
	n.next++
	op.ID = n.next
	line, err := json.Marshal(op)
	if err == nil {
		n.waiting[op.ID] = answer
		_, err = n.in.Write(append(line, '\n'))
	}
	n.mu.Unlock()
	if err != nil {
		return nil, err
	}
	select {
	case got := <-answer:
		return got, nil
	case <-time.After(30 * time.Second):
		return nil, fmt.Errorf("no answer from the native client to %s", line)
	}
}

// history is one run of clients of both kinds on the same keys.
type history struct {
	t             *testing.T
	c             *cluster
	rec           *recorder
	plain, atomic *rawkv.Client
	natives       *natives
	stop          chan struct{}
}

const historyKeys = 24

func historyKey(i int) string { return fmt.Sprintf("h-%02d", i) }

// recorded is a client of TiKV whose requests are recorded.
func (c *cluster) recorded(t *testing.T, r *recorder) *rawkv.Client {
	t.Helper()
	cl, err := rawkv.NewClientWithOpts(context.Background(), []string{c.scheduler.addr},
		rawkv.WithSecurity(config.DefaultConfig().Security),
		rawkv.WithGRPCDialOptions(grpc.WithChainUnaryInterceptor(r.unary),
			grpc.WithChainStreamInterceptor(r.stream)))
	require.NoError(t, err)
	t.Cleanup(func() { _ = cl.Close() })
	return cl
}

func (h *history) stopped() bool {
	select {
	case <-h.stop:
		return true
	default:
		return false
	}
}

// tikvClient reads, writes, deletes, swaps and scans until stopped, with values of its own. What
// its requests have done is recorded below the API; errors of calls are those of faults.
func (h *history) tikvClient(n int) {
	rng, last := rand.New(rand.NewPCG(1, uint64(n))), map[string][]byte{}
	for i := 0; !h.stopped(); i++ {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		name := historyKey(rng.IntN(historyKeys))
		key, value := []byte(name), []byte(fmt.Sprintf("t%d-%d", n, i))
		switch p := rng.IntN(100); {
		case p < 35:
			if got, err := h.plain.Get(ctx, key); err == nil {
				last[name] = got
			}
		case p < 60:
			_ = h.plain.Put(ctx, key, value)
		case p < 70:
			_ = h.plain.Delete(ctx, key)
		case p < 90:
			got, swapped, err := h.atomic.CompareAndSwap(ctx, key, last[name], value)
			if last[name] = got; swapped && err == nil {
				last[name] = value
			}
		default:
			_, _, _ = h.plain.Scan(ctx, key, append(key, 0), 2)
		}
		cancel()
	}
}

// nativeClient does the same by this project's own client, which never carries a write out twice.
func (h *history) nativeClient(n int) {
	rng, last := rand.New(rand.NewPCG(2, uint64(n))), map[string][]byte{}
	for i := 0; !h.stopped(); i++ {
		name := historyKey(rng.IntN(historyKeys))
		op := nativeOp{Key: []byte(name), Value: []byte(fmt.Sprintf("n%d-%d", n, i))}
		in := step{key: name, value: string(op.Value)}
		switch p := rng.IntN(100); {
		case p < 35:
			op.Kind, in.kind, in.value = "get", "get", ""
		case p < 60:
			op.Kind, in.kind = "put", "put"
		case p < 70:
			op.Kind, in.kind, in.value = "delete", "delete", ""
		case p < 90:
			op.Kind, op.Expected, in.kind = "swap", last[name], "swap"
			in.expected = cell{string(last[name]), last[name] != nil}
		default:
			op.Kind, in.kind, in.value = "scan", "get", ""
		}
		called := h.rec.now()
		got, err := h.natives.do(op)
		if err != nil {
			h.t.Error(err)
			return
		}
		if got.Error != "" && !got.Unknown {
			continue // nothing was done
		}
		h.rec.add("native", in, called, result{
			unknown: got.Unknown, swapped: got.Swapped, was: cell{string(got.Value), got.Found},
		})
		switch {
		case got.Unknown:
		case got.Swapped:
			last[name] = op.Value
		case in.kind == "get", in.kind == "swap":
			if last[name] = nil; got.Found {
				last[name] = append([]byte{}, got.Value...)
			}
		}
	}
}

// awaitReplicas waits until each region has three peers and a leader.
func (c *cluster) awaitReplicas(t *testing.T) {
	t.Helper()
	pd, ctx := pdpb.NewPDClient(dial(t, c.scheduler.addr)), context.Background()
	ms, err := pd.GetMembers(ctx, &pdpb.GetMembersRequest{})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		got, err := pd.ScanRegions(ctx, &pdpb.ScanRegionsRequest{
			Header: &pdpb.RequestHeader{ClusterId: ms.Header.ClusterId},
		})
		if err != nil || len(got.Regions) == 0 {
			return false
		}
		for _, r := range got.Regions {
			learner := slices.ContainsFunc(r.Region.Peers, func(p *metapb.Peer) bool {
				return p.Role == metapb.PeerRole_Learner
			})
			if len(r.Region.Peers) < 3 || learner || r.Leader.GetId() == 0 ||
				len(r.PendingPeers) > 0 {
				return false
			}
		}
		return true
	}, time.Minute, 50*time.Millisecond)
}

// run has the clients work while faults happens, and until they have done more after it. client-go
// takes longer to find a new leader, so that there are more of its callers.
func (h *history) run(faults func(more func(n int))) {
	h.t.Helper()
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Add(1)
		go func() { defer wg.Done(); h.tikvClient(n) }()
	}
	for n := range 2 {
		wg.Add(1)
		go func() { defer wg.Done(); h.nativeClient(n) }()
	}
	more := func(n int) {
		h.t.Helper()
		from := h.rec.answered()
		require.Eventually(h.t, func() bool {
			return h.rec.answered() >= from+n
		}, time.Minute, 5*time.Millisecond)
	}
	more(50)
	faults(more)
	more(200)
	close(h.stop)
	wg.Wait()
}

// Clients of TiKV and of this project read and write the same keys, while regions split, leaders
// move and each store is killed once. All of it is one history, which is linearizable.
func TestHistoryOfBothClients(t *testing.T) {
	c, rec := startCluster(t, 3), newRecorder()
	h := &history{t: t, c: c, rec: rec, stop: make(chan struct{})}
	h.plain, h.atomic = c.recorded(t, rec), c.recorded(t, rec).SetAtomicForCAS(true)
	h.natives = startNatives(t, c)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	require.NoError(t, h.plain.Put(ctx, []byte(historyKey(0)), []byte("begin")))
	c.splitAt(t, historyKey(8), historyKey(16))
	c.awaitReplicas(t)
	h.run(func(more func(int)) {
		for i, s := range c.stores {
			for range 5 {
				c.moveLeader(t, historyKey(rand.IntN(historyKeys)))
				more(30)
			}
			c.splitAt(t, historyKey(2+5*i))
			s.kill()
			more(60)
			s.start(t)
			c.awaitReplicas(t)
		}
	})
	rec.check(t)
	for _, who := range []string{goClient, "native"} {
		for _, kind := range []string{"get", "put", "delete", "swap"} {
			require.Greater(t, rec.known[kind+" of "+who], 20, "%s of %s", kind, who)
		}
	}
}
