package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/rpc"
	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
	"github.com/tinykv/tinykv/pkg/rpc/server"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// flipper is a proxy that flips one bit of the byte at an offset of what passes in one direction.
type flipper struct {
	net.Listener
	to string
	d  rpc.Direction
	// at is the byte's offset, bit the bit of it; they may be set while nothing passes.
	at, bit atomic.Int64
	// passed counts bytes in each direction, of the first connection.
	passed [2]atomic.Int64
	wg     sync.WaitGroup
}

func newFlipper(t *testing.T, to string, d rpc.Direction, at int64) *flipper {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	f := &flipper{Listener: l, to: to, d: d}
	f.at.Store(at)
	f.bit.Store(at & 7)
	f.wg.Add(1)
	go func() { defer f.wg.Done(); f.run() }()
	t.Cleanup(f.stop)
	return f
}

func (f *flipper) stop() {
	_ = f.Close()
	f.wg.Wait()
}

func (f *flipper) run() {
	for {
		in, err := f.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", f.to)
		if err != nil {
			_ = in.Close()
			continue
		}
		f.wg.Add(2)
		go f.pass(out, in, rpc.ToServer)
		go f.pass(in, out, rpc.ToClient)
	}
}

func (f *flipper) pass(to, from net.Conn, d rpc.Direction) {
	defer f.wg.Done()
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 4<<10)
	for {
		n, err := from.Read(buf)
		end := f.passed[d].Add(int64(n))
		if at := f.at.Load() - (end - int64(n)); d == f.d && at >= 0 && at < int64(n) {
			buf[at] ^= 1 << f.bit.Load()
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// exchange makes a few calls through addr, unary ones and a stream of several messages, and returns
// what came back.
func exchange(ctx context.Context, addr string, checksums bool, n int) (got []string, err error) {
	c := New(addr,
		Options{
			Checksum: checksums, ConnectTimeout: 300 * time.Millisecond, MinBackoff: time.Hour,
			MaxBackoff: time.Hour,
		})
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	cl := tinykvpb.NewTinyKvClient(c)
	for i := range n {
		resp, err := cl.RawGet(ctx, &kvrpcpb.RawGetRequest{Key: valueOf(i)})
		if err != nil {
			return got, err
		}
		got = append(got, string(resp.Value))
	}
	st, err := cl.BatchCommands(ctx)
	if err != nil {
		return got, err
	}
	for i := range n {
		if err := st.SendMsg(&kvrpcpb.RawGetRequest{Key: valueOf(n + i)}); err != nil {
			return got, err
		}
		resp := new(kvrpcpb.RawGetResponse)
		if err := st.RecvMsg(resp); err != nil {
			return got, err
		}
		got = append(got, string(resp.Value))
	}
	return got, st.CloseSend()
}

func valueOf(i int) []byte { return fmt.Appendf(nil, "value-%d-%s", i, strings.Repeat("v", 20)) }

// TestEveryFlippedBitIsNoticed flips one bit of each byte that passes, of both directions. No
// handler sees a key, and no caller a value, that was not sent. Without checksums that happens (so
// the test can fail).
func TestEveryFlippedBitIsNoticed(t *testing.T) {
	const n = 3
	good := map[string]bool{}
	for i := range 2 * n {
		good[string(valueOf(i))] = true
	}
	var foreign atomic.Int64
	look := func(s string) {
		if !good[s] {
			foreign.Add(1)
		}
	}
	var noticed atomic.Int64
	k := &rpctest.KV{Get: func(
		_ context.Context, req *kvrpcpb.RawGetRequest,
	) (*kvrpcpb.RawGetResponse, error) {
		look(string(req.Key))
		return &kvrpcpb.RawGetResponse{Value: req.Key}, nil
	}}
	_, addr := start(t,
		server.Options{OnCorrupt: func(net.Addr, string) {
			noticed.Add(1)
		}, Handshake: time.Second}, k, nil)
	through := newFlipper(t, addr, rpc.ToServer, -1)
	got, err := exchange(t.Context(), through.Addr().String(), true, n)
	require.NoError(t, err)
	require.Len(t, got, 2*n)
	size := [2]int64{through.passed[0].Load(), through.passed[1].Load()}

	// wrong flips each byte, up to lanes at a time since some flips are waited for, and counts what
	// was changed unnoticed.
	wrong := func(checksums bool) int64 {
		foreign.Store(0)
		lanes := make(chan struct{}, 32)
		var wg sync.WaitGroup
		for _, d := range []rpc.Direction{rpc.ToServer, rpc.ToClient} {
			for at := int64(0); at < size[d]; at++ {
				lanes <- struct{}{}
				wg.Add(1)
				go func() {
					defer wg.Done()
					f := newFlipperUnowned(t, addr, d, at)
					got, _ := exchange(t.Context(), f.Addr().String(), checksums, n)
					f.stop()
					for i, s := range got {
						if s != string(valueOf(i)) {
							foreign.Add(1)
						}
					}
					<-lanes
				}()
			}
		}
		wg.Wait()
		return foreign.Load()
	}
	require.Zero(t, wrong(true), "of %d and %d bytes", size[0], size[1])
	require.Positive(t, noticed.Load())
	require.Positive(t, wrong(false), "the test cannot fail")
	t.Logf("%d and %d bytes flipped, %d noticed by the server", size[0], size[1], noticed.Load())
}

func newFlipperUnowned(t *testing.T, to string, d rpc.Direction, at int64) *flipper {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Error(err)
		panic(err)
	}
	f := &flipper{Listener: l, to: to, d: d}
	f.at.Store(at)
	f.bit.Store(at & 7)
	f.wg.Add(1)
	go func() { defer f.wg.Done(); f.run() }()
	return f
}

// TestFlippedLengthEndsTheStream: a stream on which the length of a message was damaged ends at
// once, in either direction. It would else take what follows for the rest of that message.
func TestFlippedLengthEndsTheStream(t *testing.T) {
	_, addr := start(t, server.Options{MaxRecv: 64 << 20, MaxSend: 64 << 20}, &rpctest.KV{}, nil)
	for _, d := range []rpc.Direction{rpc.ToServer, rpc.ToClient} {
		for bit := range int64(8 * rpc.PrefixSize) {
			f := newFlipper(t, addr, d, -1)
			c := client(t, f.Addr().String(),
				Options{Checksum: true, MaxRecv: 64 << 20, MaxSend: 64 << 20})
			st, err := tinykvpb.NewTinyKvClient(c).BatchCommands(rpctest.Within(t))
			require.NoError(t, err)
			resp := new(kvrpcpb.RawGetResponse)
			require.NoError(t, st.SendMsg(&kvrpcpb.RawGetRequest{Key: []byte("k")}))
			require.NoError(t, st.RecvMsg(resp))
			f.bit.Store(bit % 8)
			f.at.Store(f.passed[d].Load() + rpc.FrameHeader + bit/8)
			require.NoError(t, st.SendMsg(&kvrpcpb.RawGetRequest{Key: []byte("k")}))
			err = st.RecvMsg(resp)
			require.Equal(t, codes.Unavailable, status.Code(err), "direction %d, bit %d: %v", d,
				bit, err)
		}
	}
}

// TestChecksumsAreAgreedUpon: clients that do not ask, and servers that do not know, exchange
// messages as ever.
func TestChecksumsAreAgreedUpon(t *testing.T) {
	_, addr := start(t, server.Options{}, &rpctest.KV{}, nil)
	resp, err := rpctest.DialKV(t, addr).RawGet(rpctest.Within(t),
		&kvrpcpb.RawGetRequest{Key: []byte("grpc-go")})
	require.NoError(t, err)
	require.Equal(t, "grpc-go", string(resp.Value))

	l := rpctest.Listen(t)
	c := client(t, l.Address(), Options{Checksum: true})
	first := rpctest.Get(rpctest.Within(t), c, []byte("k"))
	p := l.Greeted()
	id, key := p.Asked() // a decoder that does not know the sum skips it
	require.Equal(t, "k", key)
	p.Reply(id, "plain") // without the header
	res := rpctest.Wait(t, first, "the answer")
	require.NoError(t, res.Err)
	require.Equal(t, "plain", string(res.Value))
}

// TestLargestMessageWithChecksum: the sum does not count against the limit.
func TestLargestMessageWithChecksum(t *testing.T) {
	const limit = 1 << 20
	_, addr := start(t, server.Options{MaxRecv: limit, MaxSend: limit}, &rpctest.KV{}, nil)
	c := client(t, addr, Options{Checksum: true, MaxRecv: limit, MaxSend: limit})
	key := make([]byte, limit)
	key = key[:limit-((&kvrpcpb.RawGetResponse{Value: key}).Size()-limit)]
	res := <-rpctest.Get(rpctest.Within(t), c, key)
	require.NoError(t, res.Err)
	require.Len(t, res.Value, len(key))
	res = <-rpctest.Get(rpctest.Within(t), c, append(key, 1))
	require.Equal(t, codes.ResourceExhausted, status.Code(res.Err))
	require.False(t, errors.Is(res.Err, io.EOF))
}

// TestFlippedBitsPassOver flips one bit of each byte that passes, of both directions. Whatever it
// hits, above all the headers, whose tables remember it, the same client is served again soon.
func TestFlippedBitsPassOver(t *testing.T) {
	k := &rpctest.KV{Get: func(
		_ context.Context, req *kvrpcpb.RawGetRequest,
	) (*kvrpcpb.RawGetResponse, error) {
		if string(req.Key) == "no" {
			return nil, status.Error(codes.NotFound, "no")
		}
		return &kvrpcpb.RawGetResponse{Value: req.Key}, nil
	}}
	_, addr := start(t, server.Options{Handshake: time.Second}, k, nil)
	// calls makes the same calls as ever; good is how many rounds in a row have been right.
	calls := func(c *Client) bool {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		cl := tinykvpb.NewTinyKvClient(c)
		resp, err := cl.RawGet(ctx, &kvrpcpb.RawGetRequest{Key: []byte("key")})
		if err != nil || string(resp.Value) != "key" {
			return false
		}
		_, err = cl.RawGet(ctx, &kvrpcpb.RawGetRequest{Key: []byte("no")})
		return status.Code(err) == codes.NotFound
	}
	rounds := func(f *flipper) bool {
		c := New(f.Addr().String(), Options{
			Checksum: true, ConnectTimeout: 300 * time.Millisecond, MinBackoff: time.Millisecond,
			MaxBackoff: time.Millisecond,
			KeepAlive:  200 * time.Millisecond, KeepAliveTimeout: 200 * time.Millisecond,
		})
		defer c.Close()
		good := 0
		for deadline := time.Now().Add(rpctest.Patience); good < 4 && time.Now().Before(deadline); {
			if good++; !calls(c) {
				good = 0
			}
		}
		return good == 4
	}
	through := newFlipper(t, addr, rpc.ToServer, -1)
	require.True(t, rounds(through))
	lanes := make(chan struct{}, 32)
	var wg sync.WaitGroup
	for _, d := range []rpc.Direction{rpc.ToServer, rpc.ToClient} {
		for at := range through.passed[d].Load() {
			lanes <- struct{}{}
			wg.Add(1)
			go func() {
				defer wg.Done()
				f := newFlipperUnowned(t, addr, d, at)
				if !rounds(f) {
					t.Errorf("direction %d, byte %d: no call is served any more", d, at)
				}
				f.stop()
				<-lanes
			}()
		}
	}
	wg.Wait()
}

// TestUnimplementedDoesNotHoldUpOthers: the connection is replaced, since the method's name may be
// damaged in its header table, and the next call does not wait for it.
func TestUnimplementedDoesNotHoldUpOthers(t *testing.T) {
	_, addr := start(t, server.Options{}, &rpctest.KV{}, nil)
	c := client(t, addr, Options{Checksum: true, MinBackoff: time.Hour, MaxBackoff: time.Hour})
	for range 10 {
		err := c.Invoke(rpctest.Within(t), "/no/such", new(kvrpcpb.RawGetRequest),
			new(kvrpcpb.RawGetResponse))
		require.Equal(t, codes.Unimplemented, status.Code(err))
		require.NoError(t,
			rpctest.Wait(t, rpctest.Get(rpctest.Within(t), c, []byte("k")), "the next").Err)
	}
}
