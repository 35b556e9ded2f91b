package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tinykv/tinykv/proto/codec"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/tinykvpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// run serves in this process until stop, which waits.
func run(t *testing.T, o options) (addr string, stop func()) {
	t.Helper()
	o.addr, o.fileSize = "127.0.0.1:0", 1<<20
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan string, 1), make(chan error, 1)
	go func() { done <- serve(ctx, o, ready) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			require.NoError(t, <-done)
		})
	}
	t.Cleanup(stop)
	select {
	case addr = <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	return addr, stop
}

func connect(t *testing.T, addr string) tinykvpb.TinyKvClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(codec.CallOption()))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return tinykvpb.NewTinyKvClient(conn)
}

// TestReplicates: what was answered is in the files of a majority, also when one of three is gone;
// with two gone nothing is answered.
func TestReplicates(t *testing.T) {
	dir := t.TempDir()
	var followers []string
	var stops []func()
	for i := range 2 {
		addr, stop := run(t,
			options{mode: "follower", file: filepath.Join(dir, fmt.Sprint("follower", i))})
		followers, stops = append(followers, addr), append(stops, stop)
	}
	addr, _ := run(t,
		options{mode: "leader", file: filepath.Join(dir, "leader"), followers: followers})
	c := connect(t, addr)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	put := func(key string) error {
		_, err := c.RawPut(ctx,
			&kvrpcpb.RawPutRequest{Key: []byte(key), Value: []byte("value of " + key)})
		return err
	}
	copies := func(key string) (n int) {
		for _, name := range []string{"leader", "follower0", "follower1"} {
			data, err := os.ReadFile(filepath.Join(dir, name))
			require.NoError(t, err)
			if bytes.Contains(data, []byte("value of "+key)) {
				n++
			}
		}
		return n
	}
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Add(1)
		go func() { defer wg.Done(); require.NoError(t, put(fmt.Sprintf("key%02d", i))) }()
	}
	wg.Wait()
	require.GreaterOrEqual(t, copies("key49"), 2)

	stops[0]()
	require.NoError(t, put("with two"))
	require.Equal(t, 2, copies("with two"))

	get, err := c.RawGet(ctx, &kvrpcpb.RawGetRequest{Key: []byte("key07")})
	require.NoError(t, err)
	require.Equal(t, "value of key07", string(get.Value))
	get, err = c.RawGet(ctx, &kvrpcpb.RawGetRequest{Key: []byte("none")})
	require.NoError(t, err)
	require.True(t, get.NotFound)
	scan, err := c.RawScan(ctx, &kvrpcpb.RawScanRequest{StartKey: []byte("key10"), Limit: 5})
	require.NoError(t, err)
	var keys []string
	for _, kv := range scan.Kvs {
		keys = append(keys, string(kv.Key))
	}
	require.Equal(t, "key10 key11 key12 key13 key14", strings.Join(keys, " "))

	stops[1]()
	short, cancelShort := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancelShort()
	_, err = c.RawPut(short, &kvrpcpb.RawPutRequest{Key: []byte("alone")})
	require.Error(t, err)
}

// TestLogBeginsAgain at the end of its file.
func TestLogBeginsAgain(t *testing.T) {
	svc, stop, err := newService(t.Context(),
		options{mode: "follower", file: filepath.Join(t.TempDir(), "log"), fileSize: 1000})
	require.NoError(t, err)
	defer stop()
	w := svc.(*follower).wal
	for range 20 {
		require.NoError(t,
			w.append([]*kvrpcpb.BatchCommand{
				{Id: 1, Put: &kvrpcpb.RawPutRequest{Key: []byte("k"), Value: make([]byte, 300)}},
			}))
		require.LessOrEqual(t, w.off, w.size)
	}
	size, err := w.f.Size()
	require.NoError(t, err)
	require.EqualValues(t, 1000, size)
}

func TestEcho(t *testing.T) {
	addr, _ := run(t, options{mode: "echo"})
	c := connect(t, addr)
	_, err := c.RawPut(t.Context(), &kvrpcpb.RawPutRequest{Key: []byte("k")})
	require.NoError(t, err)
	get, err := c.RawGet(t.Context(), &kvrpcpb.RawGetRequest{Key: []byte("k")})
	require.NoError(t, err)
	require.Len(t, get.Value, 256)
	scan, err := c.RawScan(t.Context(), &kvrpcpb.RawScanRequest{StartKey: []byte("k"), Limit: 3})
	require.NoError(t, err)
	require.Len(t, scan.Kvs, 3)
}

func TestUnknownMode(t *testing.T) {
	require.Error(t,
		serve(t.Context(), options{mode: "x", file: filepath.Join(t.TempDir(), "f")}, nil))
}
