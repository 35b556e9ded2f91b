package rig

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tinykv/tinykv/cmd/tinyctl/loadgen"
	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
	"github.com/tinykv/tinykv/kv/client/fill"
	"github.com/tinykv/tinykv/pkg/freeport"
	"github.com/tinykv/tinykv/proto/codec"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

// Ideal is a yardstick of package ideal: an echo, or a leader with two followers.
type Ideal struct {
	base
	name string
	addr string // where clients go
}

// NewIdeal lays a yardstick out; it starts nothing.
func NewIdeal(b Bins, echo bool) (*Ideal, error) {
	s := &Ideal{name: "ideal"}
	var err error
	if s.base, err = newBase("ideal"); err != nil {
		return nil, err
	}
	ports, err := freeport.Find(3)
	if err != nil {
		return nil, err
	}
	addr := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", ports[i]) }
	s.addr = addr(0)
	if echo {
		s.name = "echo"
		s.procs = []*localcluster.Process{
			localcluster.Command(s.dir, "echo", b.Ideal, addr(0), "--mode", "echo", "--addr",
				addr(0)),
		}
		return s, nil
	}
	for i, mode := range []string{"leader", "follower", "follower"} {
		name := fmt.Sprintf("%s-%d", mode, i)
		args := []string{"--mode", mode, "--addr", addr(i), "--file", filepath.Join(s.dir, name)}
		if mode == "leader" {
			args = append(args, "--followers", strings.Join([]string{addr(1), addr(2)}, ","))
		}
		s.procs = append(s.procs, localcluster.Command(s.dir, name, b.Ideal, addr(i), args...))
	}
	return s, nil
}

// Name implements System.
func (s *Ideal) Name() string { return s.name }

// Leader implements System.
func (s *Ideal) Leader(context.Context) (*localcluster.Process, error) { return s.procs[0], nil }

// Open implements System.
func (s *Ideal) Open(_ context.Context, m Mode) (loadgen.Driver, error) {
	d := &rawDriver{name: s.name}
	if m.Conns == 0 {
		m.Conns = 4
	}
	d.loads = fill.New(m.Conns)
	for range m.Conns {
		conn, err := grpc.NewClient("passthrough:///"+s.addr,
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			// as kv/client
			grpc.WithInitialWindowSize(4<<20), grpc.WithInitialConnWindowSize(8<<20),
			grpc.WithDefaultCallOptions(codec.CallOption(), grpc.WaitForReady(true),
				grpc.MaxCallRecvMsgSize(64<<20), grpc.MaxCallSendMsgSize(64<<20)))
		if err != nil {
			d.Close()
			return nil, err
		}
		d.conns = append(d.conns, conn)
		d.stubs = append(d.stubs, tinykvpb.NewTinyKvClient(conn))
	}
	return d, nil
}

// rawDriver sends bare unary calls, without regions, retries or deadlines.
type rawDriver struct {
	name  string
	conns []*grpc.ClientConn
	stubs []tinykvpb.TinyKvClient
	loads *fill.Loads // of conns: filled as kv/client does
}

var errNoDelete = errors.New("the yardstick knows no deletes")

// stub chooses a connection; done must be called when the request has ended.
func (d *rawDriver) stub() (s tinykvpb.TinyKvClient, done func()) {
	i := d.loads.Take()
	return d.stubs[i], func() { d.loads.Done(i) }
}

func (d *rawDriver) Name() string { return d.name }

func (d *rawDriver) Put(ctx context.Context, key, value []byte) error {
	s, done := d.stub()
	defer done()
	_, err := s.RawPut(ctx, &kvrpcpb.RawPutRequest{Key: key, Value: value})
	return err
}

func (d *rawDriver) Read(ctx context.Context, key []byte) ([]byte, error) {
	s, done := d.stub()
	defer done()
	resp, err := s.RawGet(ctx, &kvrpcpb.RawGetRequest{Key: key})
	if err != nil || resp.NotFound {
		return nil, err
	}
	return resp.Value, nil
}

func (d *rawDriver) Scan(ctx context.Context, start []byte, limit int) (int, error) {
	s, done := d.stub()
	defer done()
	resp, err := s.RawScan(ctx, &kvrpcpb.RawScanRequest{StartKey: start, Limit: uint32(limit)})
	if err != nil {
		return 0, err
	}
	return len(resp.Kvs), nil
}

func (d *rawDriver) Delete(context.Context, []byte) error { return errNoDelete }

func (d *rawDriver) Close() {
	for _, c := range d.conns {
		_ = c.Close() // nothing is lost
	}
}
