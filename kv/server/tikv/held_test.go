package tikv

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"github.com/pingcap/kvproto/pkg/tikvpb"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

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

// serveSlow serves a storage until the test ends it.
func serveSlow(t *testing.T, st storage.Storage) (*rpc.Server, *grpc.ClientConn, chan error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	g := rpc.New(rpc.Options{Codec: codec.New(), MaxRecv: MaxMessage})
	Register(g, New(testConfig(), 1, st, new(gate.Gate)))
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }() // ends by Stop
	conn, err := grpc.NewClient("passthrough:///"+l.Addr().String(),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	return g, conn, served
}

// putsOf is a message of puts.
func putsOf(n, size int) *tikvpb.BatchCommandsRequest {
	m := &tikvpb.BatchCommandsRequest{}
	for i := range n {
		m.RequestIds = append(m.RequestIds, uint64(i))
		m.Requests = append(m.Requests, &request{
			Cmd: &tikvpb.BatchCommandsRequest_Request_RawPut{RawPut: &kvrpcpb.RawPutRequest{
				Context: goodContext(), Key: fmt.Append([]byte("b"), i), Value: make([]byte, size),
			}},
		})
	}
	return m
}

// TestLargeMessageIsDecodedInParts: of a message of 40 MiB no more commands are begun than
// maxDecoded holds; each answer makes room for the next. All of the message is charged until its
// last command is decoded, then what is not answered. A command that cannot be decoded ends the
// stream; those before it are carried out.
func TestLargeMessageIsDecodedInParts(t *testing.T) {
	const puts, size = 10, 4 << 20
	for _, broken := range []bool{false, true} {
		st := &slowWrites{replicated(t), make(chan func(uint64, error), puts)}
		g, conn, served := serveSlow(t, st)
		ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
		defer cancel()
		stream, err := conn.NewStream(ctx,
			&grpc.StreamDesc{ClientStreams: true, ServerStreams: true},
			"/"+serviceName+"/BatchCommands", grpc.ForceCodec(bytesCodec{}))
		require.NoError(t, err)
		data, err := putsOf(puts, size).Marshal()
		require.NoError(t, err)
		if broken { // of the last command: its kind says that 120 bytes follow
			last := bytes.LastIndex(data, goodContextBytes(t))
			require.Positive(t, last)
			data[last-1] = 0xff
		}
		message := encoded(data)
		require.NoError(t, stream.SendMsg(&message))
		const together = maxDecoded/size - 1 // each is a little larger than its value
		var begun []func(uint64, error)
		for range together {
			begun = append(begun, <-st.begun)
		}
		whole := int64(len(data)) + 5 // gRPC's prefix
		for i := range puts {
			used := func() int64 { return g.Stats().RequestBytes }
			switch left := int64(puts - i); {
			case left > together:
				require.Equal(t, whole, used(), "%d answered", i)
				require.Empty(t, st.begun)
			case !broken:
				require.Eventually(t, func() bool {
					return used() >= left*size && used() < left*size+10_000
				}, 20*time.Second, time.Millisecond)
			}
			begun[i](1, nil)
			if next := i + together; next < puts && !(broken && next == puts-1) {
				begun = append(begun, <-st.begun)
			}
			if broken && len(begun) == i+1 {
				break
			}
		}
		got, answers := encoded{}, 0
		for err = stream.RecvMsg(&got); err == nil; err = stream.RecvMsg(&got) {
			resp := new(tikvpb.BatchCommandsResponse)
			require.NoError(t, resp.Unmarshal(got))
			if answers += len(resp.Responses); answers == puts {
				require.NoError(t, stream.CloseSend())
			}
		}
		if broken {
			require.Equal(t, codes.Internal, status.Code(err), err)
		} else {
			require.ErrorIs(t, err, io.EOF)
			require.Equal(t, puts, answers)
		}
		require.Eventually(t, func() bool { return g.Stats().RequestBytes == 0 },
			20*time.Second, time.Millisecond)
		require.NoError(t, conn.Close())
		g.Stop()
		require.ErrorIs(t, <-served, rpc.ErrStopped)
	}
}

// goodContextBytes is how the context of a good request is encoded.
func goodContextBytes(t *testing.T) []byte {
	t.Helper()
	b, err := goodContext().Marshal()
	require.NoError(t, err)
	return b
}

// TestCommandsAreChargedUntilTheyAreAnswered: commands of a large message are charged each until
// its own answer, also when the stream or the connection has ended before; nothing is left then.
func TestCommandsAreChargedUntilTheyAreAnswered(t *testing.T) {
	for _, ending := range []string{"answered", "cancelled", "connection lost", "stopped"} {
		t.Run(ending, func(t *testing.T) {
			const puts, size = 4, 500_000
			st := &slowWrites{replicated(t), make(chan func(uint64, error), puts)}
			g, conn, served := serveSlow(t, st)
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			stream, err := tikvpb.NewTikvClient(conn).BatchCommands(ctx)
			require.NoError(t, err)
			require.NoError(t, stream.Send(putsOf(puts, size)))
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
