package tikv

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"github.com/pingcap/kvproto/pkg/tikvpb"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tinykv/tinykv/kv/server/gate"
	"github.com/tinykv/tinykv/kv/storage"
	rpc "github.com/tinykv/tinykv/pkg/rpc/server"
	"github.com/tinykv/tinykv/proto/codec"
	ownpb "github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// slowWrites is a storage whose writes are answered by the test.
type slowWrites struct {
	storage.Storage
	begun chan func(index uint64, err error)
}

func (s *slowWrites) WriteAsync(
	_ *ownpb.Context, _ []storage.Modify, _ time.Time, done func(index uint64, err error),
) {
	s.begun <- done
}

// TestCommandsAreChargedUntilTheyAreAnswered: commands of a large message are charged each until
// its own answer, also when the stream or the connection has ended before; nothing is left then.
func TestCommandsAreChargedUntilTheyAreAnswered(t *testing.T) {
	for _, ending := range []string{"answered", "cancelled", "connection lost", "stopped"} {
		t.Run(ending, func(t *testing.T) {
			const puts, size = 4, 500_000
			st := &slowWrites{replicated(t), make(chan func(uint64, error), puts)}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			g := rpc.New(rpc.Options{Codec: codec.New()})
			Register(g, New(testConfig(), 1, st, new(gate.Gate)))
			served := make(chan error, 1)
			go func() { served <- g.Serve(l) }() // ends by Stop
			conn, err := grpc.NewClient("passthrough:///"+l.Addr().String(),
				grpc.WithTransportCredentials(insecure.NewCredentials()))
			require.NoError(t, err)
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			stream, err := tikvpb.NewTikvClient(conn).BatchCommands(ctx)
			require.NoError(t, err)
			m := &tikvpb.BatchCommandsRequest{}
			for i := range puts {
				m.RequestIds = append(m.RequestIds, uint64(i))
				m.Requests = append(m.Requests, &request{
					Cmd: &tikvpb.BatchCommandsRequest_Request_RawPut{RawPut: &kvrpcpb.RawPutRequest{
						Context: goodContext(), Key: fmt.Append([]byte("b"), i),
						Value: make([]byte, size),
					}},
				})
			}
			require.NoError(t, stream.Send(m))
			var dones []func(uint64, error)
			for range puts {
				dones = append(dones, <-st.begun)
			}
			held := func(n int64) {
				t.Helper()
				require.Eventually(t, func() bool {
					used := g.Stats().RequestBytes
					return used >= n*size && used < n*size+10_000
				}, 20*time.Second, time.Millisecond)
			}
			held(puts)
			dones[0](1, nil)
			held(puts - 1)
			switch ending {
			case "cancelled":
				cancel()
				held(puts - 1)
			case "connection lost":
				require.NoError(t, conn.Close())
				held(puts - 1)
			case "stopped":
				g.Stop()
			}
			for _, done := range dones[1:] {
				done(2, nil)
			}
			require.Eventually(t, func() bool { return g.Stats().RequestBytes == 0 },
				20*time.Second, time.Millisecond)
			_ = conn.Close() // perhaps again
			g.Stop()
			require.ErrorIs(t, <-served, rpc.ErrStopped)
		})
	}
}
