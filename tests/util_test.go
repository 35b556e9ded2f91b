package tests

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/tinykv/tinykv/kv/client"
	"github.com/tinykv/tinykv/tests/cluster"
)

func mustPut(t *testing.T, c *cluster.Cluster, cl *client.Client, key, value string) {
	t.Helper()
	c.Eventually(20*time.Second, func() string {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		if err := cl.Put(ctx, []byte(key), []byte(value)); err != nil {
			return fmt.Sprintf("put %s: %v", key, err)
		}
		return ""
	})
}

func mustGet(t *testing.T, c *cluster.Cluster, cl *client.Client, key, want string) {
	t.Helper()
	c.Eventually(20*time.Second, func() string {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		got, found, err := cl.Get(ctx, []byte(key))
		if err != nil {
			return fmt.Sprintf("get %s: %v", key, err)
		}
		if !found || string(got) != want {
			t.Fatalf("get %s: %q found=%v, want %q", key, got, found, want)
		}
		return ""
	})
}
