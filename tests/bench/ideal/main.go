// Command ideal is a yardstick for benchmarks, not a database: the least that a replicated store
// must do for a request, so that the figures of a real one can be held against it.
//
// With --mode echo it answers every call at once. With --mode leader it serves unary puts, gets and
// scans like a store: a put goes into one log of its own and of two followers (--mode follower),
// each a preallocated file with one fdatasync per batch, and is answered when two of the three have
// it. There are no elections, no recovery and no second log; everything is lost with the process.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"google.golang.org/grpc"

	"github.com/tinykv/tinykv/kv/vfs"
	"github.com/tinykv/tinykv/pkg/goruntime"
	"github.com/tinykv/tinykv/proto/codec"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

type options struct {
	mode, addr, file string
	followers        []string
	fileSize         int64
}

func main() {
	var o options
	flag.StringVar(&o.mode, "mode", "echo", "echo, leader or follower")
	flag.StringVar(&o.addr, "addr", "127.0.0.1:0", "address to serve on")
	flag.StringVar(&o.file, "file", "", "log file of a leader or follower")
	flag.Int64Var(&o.fileSize, "file-size", 128<<20,
		"bytes of the log file, which is written over and over")
	followers := flag.String("followers", "",
		"addresses of the leader's followers, comma separated")
	flag.Parse()
	if *followers != "" {
		o.followers = strings.Split(*followers, ",")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	defer goruntime.SetHeapFloor(goruntime.ServerHeap).Stop()
	if err := serve(ctx, o, nil); err != nil {
		fmt.Fprintln(os.Stderr, "ideal:", err)
		os.Exit(1)
	}
}

// serve runs until ctx ends. ready, if not nil, gets the address once it accepts connections.
func serve(ctx context.Context, o options, ready chan<- string) error {
	svc, stop, err := newService(ctx, o)
	if err != nil {
		return err
	}
	defer stop()
	l, err := net.Listen("tcp", o.addr)
	if err != nil {
		return err
	}
	s := grpc.NewServer(codec.ServerOption(), grpc.MaxRecvMsgSize(64<<20),
		grpc.MaxSendMsgSize(64<<20),
		grpc.InitialWindowSize(4<<20), grpc.InitialConnWindowSize(8<<20),
		grpc.MaxConcurrentStreams(4096))
	tinykvpb.RegisterTinyKvServer(s, svc)
	// Ends with ctx, which serve's caller ends.
	go func() { <-ctx.Done(); s.Stop() }()
	if ready != nil {
		ready <- l.Addr().String()
	}
	return s.Serve(l)
}

// newService makes the service of a mode; stop ends what it started, after ctx has ended.
func newService(
	ctx context.Context, o options,
) (svc tinykvpb.TinyKvServer, stop func(), err error) {
	if o.mode == "echo" {
		return &echo{}, func() {}, nil
	}
	f, err := vfs.OS.Create(o.file)
	if err != nil {
		return nil, nil, err
	}
	if err := f.Allocate(o.fileSize); err != nil {
		_ = f.Close()
		return nil, nil, err
	}
	w := &wal{f: f, size: o.fileSize}
	switch o.mode {
	case "follower":
		return &follower{wal: w}, func() { _ = f.Close() }, nil
	case "leader":
		l, err := newLeader(ctx, w, o.followers)
		if err != nil {
			_ = f.Close()
			return nil, nil, err
		}
		return l, func() { l.wait(); _ = f.Close() }, nil
	}
	_ = f.Close()
	return nil, nil, fmt.Errorf("unknown mode %q", o.mode)
}
