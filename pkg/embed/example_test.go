package embed_test

import (
	"context"
	"fmt"
	"time"

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
