package embed_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/tinykv/tinykv/kv/client"
	"github.com/tinykv/tinykv/pkg/embed"
)

// A cluster of three stores, of which one dies.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := embed.Start(ctx, embed.Config{Stores: 3})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = c.Stop() }()
	cl, err := c.Client(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer cl.Close()
	if err := cl.Put(ctx, []byte("hello"), []byte("world")); err != nil {
		fmt.Println(err)
		return
	}
	if err := c.WaitReplicas(ctx); err != nil {
		fmt.Println(err)
		return
	}
	c.Stores()[0].Kill()
	value, found, err := cl.Get(ctx, []byte("hello"))
	fmt.Println(string(value), found, err)
	// Output: world true <nil>
}

// A client whose requests pass through an interceptor, as those of tracing and metrics do.
func ExampleCluster_Endpoints_interceptors() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := embed.Start(ctx, embed.Config{Stores: 1})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = c.Stop() }()
	var puts atomic.Int64
	count := func(
		ctx context.Context, method string, req, reply any, cc *grpc.ClientConn,
		next grpc.UnaryInvoker, opts ...grpc.CallOption,
	) error {
		err := next(ctx, method, req, reply, cc, opts...)
		if err == nil && method == "/tinykvpb.TinyKv/RawPut" {
			puts.Add(1)
		}
		return err
	}
	cl, err := client.Open(ctx, c.Endpoints(), client.Options{
		UnaryInterceptors: []grpc.UnaryClientInterceptor{count},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer cl.Close()
	err = cl.Put(ctx, []byte("hello"), []byte("world"))
	fmt.Println(puts.Load() > 0, err)
	// Output: true <nil>
}
