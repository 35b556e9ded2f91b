package tikv

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"github.com/pingcap/kvproto/pkg/tikvpb"
	"github.com/stretchr/testify/require"
)

// mostResident is the most memory that a process has had, in MiB.
func mostResident(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		var kib int
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kib); n == 1 {
			return kib >> 10
		}
	}
	t.Fatal("no VmHWM")
	return 0
}

// largeBatch sends puts of 1 MiB in one message of 128 MiB, and then a get. It returns how many
// puts were carried out and how many refused, because the store was busy or the region has been
// split meanwhile; all else, a stream that ends among it, is an error.
func largeBatch(
	ctx context.Context, store tikvpb.TikvClient, rc *kvrpcpb.Context, id, puts int,
) (done, refused int, err error) {
	stream, err := store.BatchCommands(ctx)
	if err != nil {
		return 0, 0, err
	}
	var fill [32]byte
	fill[0] = byte(id)
	random := rand.NewChaCha8(fill)
	m := &tikvpb.BatchCommandsRequest{}
	for i := range puts {
		value := make([]byte, 1<<20)
		_, _ = random.Read(value) // never fails
		put := &kvrpcpb.RawPutRequest{
			Context: rc, Key: fmt.Appendf(nil, "%02d-%03d", id, i), Value: value,
		}
		m.RequestIds = append(m.RequestIds, uint64(i+1))
		m.Requests = append(m.Requests, &tikvpb.BatchCommandsRequest_Request{
			Cmd: &tikvpb.BatchCommandsRequest_Request_RawPut{RawPut: put},
		})
	}
	if err := stream.Send(m); err != nil {
		return 0, 0, err
	}
	for answered := 0; answered < puts; {
		resp, err := stream.Recv()
		if err != nil {
			return done, refused, fmt.Errorf("after %d answers: %w", answered, err)
		}
		for _, r := range resp.Responses {
			answered++
			switch put := r.GetRawPut(); {
			case put.GetRegionError().GetServerIsBusy().GetReason() != "",
				put.GetRegionError().GetEpochNotMatch() != nil:
				refused++
			case put == nil || put.RegionError != nil || put.Error != "":
				return done, refused, fmt.Errorf("answered by %v", r)
			default:
				done++
			}
		}
	}
	get := &kvrpcpb.RawGetRequest{Context: rc, Key: []byte("small")}
	if err := stream.Send(&tikvpb.BatchCommandsRequest{
		RequestIds: []uint64{1 << 20},
		Requests: []*tikvpb.BatchCommandsRequest_Request{
			{Cmd: &tikvpb.BatchCommandsRequest_Request_RawGet{RawGet: get}},
		},
	}); err != nil {
		return done, refused, err
	}
	resp, err := stream.Recv()
	if err != nil {
		return done, refused, err
	}
	got := resp.Responses[0].GetRawGet()
	if string(got.GetValue()) != "v" && got.GetRegionError().GetEpochNotMatch() == nil {
		err = fmt.Errorf("the get was answered by %v", resp)
	}
	return done, refused, err
}

// Clients put no limit on the bytes of a batch. 128 puts of 1 MiB in one message are carried out,
// or refused because the store is busy, and the stream goes on. ATTACK=1: ten clients do so at the
// same time; a store takes their messages one after another.
//
// The bound of both forms: one message is larger than max-request-bytes, so it is held alone. Of it
// 16 MiB are decoded at a time. Another one may be on its way, or be what the collector has not
// found yet. The rest is for the engine and what the store takes without clients.
func TestLargeBatches(t *testing.T) {
	clients, puts := 1, 128
	bound := 1024 // MiB
	if os.Getenv("ATTACK") != "" {
		clients = 10
	}
	c := startCluster(t, 1)
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	store, rc := c.target(t, "k")
	resp, err := store.RawPut(ctx,
		&kvrpcpb.RawPutRequest{Context: rc, Key: []byte("small"), Value: []byte("v")})
	require.NoError(t, err)
	require.Nil(t, resp.RegionError)
	rc.MaxExecutionDurationMs = 60_000
	before := mostResident(t, c.stores[0].cmd.Process.Pid)
	began := time.Now()
	var wg sync.WaitGroup
	dones, refusals := make([]int, clients), make([]int, clients)
	for id := range clients {
		own := tikvpb.NewTikvClient(dial(t, c.stores[0].addr))
		wg.Add(1)
		go func() { // ends with ctx
			defer wg.Done()
			var err error
			if dones[id], refusals[id], err = largeBatch(ctx, own, rc, id, puts); err != nil {
				t.Errorf("client %d: %v", id, err)
			}
		}()
	}
	wg.Wait()
	most := mostResident(t, c.stores[0].cmd.Process.Pid)
	t.Logf("%d clients: carried out %v, refused %v, %v; %d MiB at most, %d before", clients,
		dones, refusals, time.Since(began), most, before)
	for id := range clients {
		require.Equal(t, puts, dones[id]+refusals[id])
	}
	if clients == 1 {
		require.Equal(t, puts, dones[0], "nobody else kept the store busy")
		bound = 640
	}
	require.Less(t, most, bound, "MiB")
}
