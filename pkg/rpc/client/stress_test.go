package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
	"github.com/tinykv/tinykv/pkg/rpc/server"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// cutter is a proxy that cuts each connection after a random number of bytes, either way.
type cutter struct {
	l    net.Listener
	to   string
	rnd  *rand.Rand
	wg   sync.WaitGroup
	cuts atomic.Int64
}

func cut(t *testing.T, to string, rnd *rand.Rand) *cutter {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &cutter{l: l, to: to, rnd: rnd}
	p.wg.Go(p.serve)
	t.Cleanup(func() { _ = l.Close(); p.wg.Wait() })
	return p
}

func (p *cutter) serve() {
	for {
		from, err := p.l.Accept()
		if err != nil {
			return
		}
		to, err := net.Dial("tcp", p.to)
		if err != nil {
			_ = from.Close()
			continue
		}
		for _, way := range [][2]net.Conn{{from, to}, {to, from}} {
			n := int64(1) << (8 + p.rnd.IntN(17))
			p.wg.Go(func() {
				if copied, _ := io.CopyN(way[0], way[1], n); copied == n {
					p.cuts.Add(1)
				}
				_, _ = from.Close(), to.Close()
			})
		}
	}
}

// stressSeed is TINYKV_RPC_SEED, or another one each time.
func stressSeed(t *testing.T) uint64 {
	seed := rand.Uint64()
	if s := os.Getenv("TINYKV_RPC_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("TINYKV_RPC_SEED=%d", seed)
	return seed
}

// TestClientStress: calls and streams of all sizes, cancelled at any time, over connections that
// are cut. Whatever succeeds has its own answer, whatever fails says why, and everything ends.
func TestClientStress(t *testing.T) {
	const workers, rounds = 16, 150
	seed := stressSeed(t)
	half := func(call *server.Call, request []byte) bool {
		return len(request)%2 == 0 && echoInline(call, request)
	}
	s, addr := start(t, server.Options{}, &rpctest.KV{}, half)
	p := cut(t, addr, rand.New(rand.NewPCG(seed, 0)))
	cc := client(t, p.l.Addr().String(),
		Options{MinBackoff: 1, MaxBackoff: 1, StreamWindow: 100_000, ConnWindow: 200_000})
	c := tinykvpb.NewTinyKvClient(cc)
	var good atomic.Int64
	var g rpctest.Group
	for worker := range uint64(workers) {
		g.Go(func() error {
			rnd := rand.New(rand.NewPCG(seed, worker+1))
			for range rounds {
				err := stressOnce(c, rnd)
				// there was no connection
				for NotSent(err) && status.Code(err) == codes.Unavailable {
					err = stressOnce(c, rnd)
				}
				if err == nil {
					good.Add(1)
				} else if !mayFail(err) {
					return err
				}
			}
			return nil
		})
	}
	rpctest.Returns(t, "workers", func() { require.NoError(t, g.Wait()) })
	t.Logf("%d of %d went well, %d cuts", good.Load(), workers*rounds, p.cuts.Load())
	require.NotZero(t, good.Load())
	require.NotZero(t, p.cuts.Load())
	for _, l := range cc.allLinks() {
		require.Eventually(t, func() bool {
			return l.open() == 0
		}, rpctest.Patience, time.Millisecond)
	}
	rpctest.Returns(t, "Close", func() { _ = cc.Close() })
	require.Eventually(t, func() bool {
		return s.Stats().Calls == 0
	}, rpctest.Patience, time.Millisecond, "calls are left")
}

// mayFail are the errors of connections that are cut and calls that are cancelled.
func mayFail(err error) bool {
	if errors.Is(err, errWrongAnswer) {
		return false
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.Canceled, codes.DeadlineExceeded:
		return true
	}
	return false
}

var errWrongAnswer = errors.New("another call's answer")

// stressOnce makes a call or a stream, which is cancelled at once, soon, or later than it takes.
func stressOnce(c tinykvpb.TinyKvClient, rnd *rand.Rand) error {
	ctx, cancel := context.WithTimeout(context.Background(), rpctest.Patience)
	defer cancel()
	switch d := time.Duration(rnd.IntN(2000)) * time.Microsecond; rnd.IntN(4) {
	case 0:
		defer time.AfterFunc(d, cancel).Stop()
	case 1:
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	}
	next := func() []byte {
		key := make([]byte, rnd.IntN(1<<(4+rnd.IntN(12))))
		for i := range min(len(key), 16) {
			key[i] = byte(rnd.Uint32())
		}
		return key
	}
	check := func(key []byte, resp *kvrpcpb.RawGetResponse) error {
		if !bytes.Equal(key, resp.Value) {
			return fmt.Errorf("%w: %d bytes for %d", errWrongAnswer, len(resp.Value), len(key))
		}
		return nil
	}
	if rnd.IntN(3) > 0 {
		for range 4 {
			key := next()
			resp, err := c.RawGet(ctx, &kvrpcpb.RawGetRequest{Key: key})
			if err != nil {
				return err
			}
			if err := check(key, resp); err != nil {
				return err
			}
		}
		return nil
	}
	st, err := c.BatchCommands(ctx)
	if err != nil {
		return err
	}
	for range rnd.IntN(6) {
		key, resp := next(), new(kvrpcpb.RawGetResponse)
		if err := st.SendMsg(&kvrpcpb.RawGetRequest{Key: key}); err != nil && err != io.EOF {
			return err
		}
		if err := st.RecvMsg(resp); err != nil {
			return err
		}
		if err := check(key, resp); err != nil {
			return err
		}
	}
	if err := st.CloseSend(); err != nil {
		return err
	}
	if err := st.RecvMsg(new(kvrpcpb.RawGetResponse)); err != io.EOF {
		return err
	}
	return nil
}
