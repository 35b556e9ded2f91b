package loadgen

import (
	"context"
	"net"
	"strings"

	"github.com/tinykv/tinykv/kv/client"
)

// tinykvDriver loads a TinyKV cluster through its routing client.
type tinykvDriver struct {
	c    *client.Client
	name string
}

// NewTinyKV makes a driver over a client that stays the caller's; name stands in results.
func NewTinyKV(c *client.Client, name string) Driver { return tinykvDriver{c, name} }

func (d tinykvDriver) Name() string { return d.name }

func (d tinykvDriver) Put(ctx context.Context, key, value []byte) error {
	return d.c.Put(ctx, key, value)
}

func (d tinykvDriver) Read(ctx context.Context, key []byte) ([]byte, error) {
	v, _, err := d.c.Get(ctx, key)
	return v, err
}

func (d tinykvDriver) Scan(ctx context.Context, start []byte, limit int) (int, error) {
	n := 0
	err := d.c.Visit(ctx, start, nil, limit, func(client.KV) error { n++; return nil })
	return n, err
}

func (d tinykvDriver) Delete(ctx context.Context, key []byte) error { return d.c.Delete(ctx, key) }

func (d tinykvDriver) Close() {}

// TinyKVServers are the addresses of a cluster's processes: the placement service's members and all
// stores that are not tombstones.
func TinyKVServers(ctx context.Context, c *client.Client, endpoints []string) ([]string, error) {
	stores, err := c.Placement().GetAllStores(ctx, true)
	if err != nil {
		return nil, err
	}
	addrs := hostPorts(endpoints)
	for _, s := range stores {
		addrs = append(addrs, s.Address)
	}
	members, err := c.Placement().GetMembers(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range members.Members {
		addrs = append(addrs, hostPorts(m.ClientUrls)...)
	}
	return addrs, nil
}

// hostPorts strips the schemes of URLs.
func hostPorts(urls []string) []string {
	var out []string
	for _, u := range urls {
		_, rest, ok := strings.Cut(u, "://")
		if !ok {
			rest = u
		}
		if _, _, err := net.SplitHostPort(rest); err == nil {
			out = append(out, rest)
		}
	}
	return out
}

// DefaultConns is the number of connections per store at which the load generator's CPU time per
// operation is about the least.
func DefaultConns(unary bool) int {
	if unary {
		return 4
	}
	return 1
}
