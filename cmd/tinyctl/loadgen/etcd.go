package loadgen

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/tinykv/tinykv/kv/client/fill"
)

// etcdDriver loads an etcd cluster. Reads are linearizable, which is the client's default.
type etcdDriver struct {
	clients []*clientv3.Client
	loads   *fill.Loads // of clients: filled as kv/client does
	keys    int
	txn     bool
}

// EtcdOptions tune the driver of etcd.
type EtcdOptions struct {
	Endpoints []string
	// Conns is the number of clients, each with a connection of its own.
	Conns int
	// LeaderOnly sends everything to the member that leads when the driver is made, which saves
	// etcd the way from a follower to the leader: its best case, as long as the leader stays.
	LeaderOnly bool
	// Keys is the size of the key space of Key, if that is what is loaded. Then a scan's range ends
	// where it holds about twice as many keys as the limit: etcd counts all keys of a range, and
	// without an end it would count half of the data for each scan. 0: scans have no end.
	Keys int
	// Txn has puts be transactions of one comparison and one put.
	Txn bool
}

// NewEtcd connects to a cluster; the caller closes the driver.
func NewEtcd(ctx context.Context, o EtcdOptions) (Driver, error) {
	endpoints := o.Endpoints
	if o.LeaderOnly {
		leader, err := EtcdLeader(ctx, o.Endpoints)
		if err != nil {
			return nil, err
		}
		endpoints = []string{leader}
	}
	d := &etcdDriver{keys: o.Keys, txn: o.Txn, loads: fill.New(o.Conns)}
	for range max(1, o.Conns) {
		c, err := newEtcdClient(endpoints)
		if err != nil {
			d.Close()
			return nil, err
		}
		d.clients = append(d.clients, c)
	}
	return d, nil
}

// dialOptions are those of TinyKV's client: windows of a fixed size, so that no connection sends
// pings to measure what it should be.
var dialOptions = []grpc.DialOption{
	grpc.WithInitialWindowSize(4 << 20), grpc.WithInitialConnWindowSize(8 << 20),
}

func newEtcdClient(endpoints []string) (*clientv3.Client, error) {
	c, err := clientv3.New(clientv3.Config{
		Endpoints: endpoints, DialTimeout: 5 * time.Second, Logger: zap.NewNop(),
		DialOptions: dialOptions,
	})
	if err != nil {
		return nil, fmt.Errorf("connect to etcd: %w", err)
	}
	return c, nil
}

// EtcdLeader finds the endpoint whose member leads.
func EtcdLeader(ctx context.Context, endpoints []string) (string, error) {
	c, err := newEtcdClient(endpoints)
	if err != nil {
		return "", err
	}
	defer c.Close()
	var errs []error
	for _, e := range endpoints {
		sctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		st, err := c.Status(sctx, e)
		cancel()
		if err == nil && st.Leader == st.Header.MemberId {
			return e, nil
		}
		errs = append(errs, err)
	}
	return "", errors.Join(append(errs, errors.New("no endpoint of etcd leads"))...)
}

// client chooses a client; done must be called when the request has ended.
func (d *etcdDriver) client() (c *clientv3.Client, done func()) {
	i := d.loads.Take()
	return d.clients[i], func() { d.loads.Done(i) }
}

func (d *etcdDriver) Name() string { return "etcd" }

func (d *etcdDriver) Put(ctx context.Context, key, value []byte) error {
	c, done := d.client()
	defer done()
	if d.txn {
		// The comparison always holds: what is measured is its cost.
		_, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(string(key)), ">", -1)).
			Then(clientv3.OpPut(string(key), string(value))).Commit()
		return err
	}
	_, err := c.Put(ctx, string(key), string(value))
	return err
}

func (d *etcdDriver) Read(ctx context.Context, key []byte) ([]byte, error) {
	c, done := d.client()
	defer done()
	resp, err := c.Get(ctx, string(key))
	if err != nil || len(resp.Kvs) == 0 {
		return nil, err
	}
	return resp.Kvs[0].Value, nil
}

func (d *etcdDriver) Scan(ctx context.Context, start []byte, limit int) (int, error) {
	end := clientv3.WithFromKey()
	if key := scanEnd(start, limit, d.keys); key != nil {
		end = clientv3.WithRange(string(key))
	}
	c, done := d.client()
	defer done()
	resp, err := c.Get(ctx, string(start), end, clientv3.WithLimit(int64(limit)))
	if err != nil {
		return 0, err
	}
	return len(resp.Kvs), nil
}

// scanEnd is a key that about twice limit keys of the key space lie before, from start on; nil if
// there is no such key.
func scanEnd(start []byte, limit, keys int) []byte {
	if keys == 0 || len(start) < MinKeySize {
		return nil
	}
	at := len(start) - MinKeySize
	from := binary.BigEndian.Uint64(start[at:])
	gap := math.MaxUint64 / uint64(keys)
	room := (math.MaxUint64 - from) / gap // keys up to the end of the key space
	if uint64(2*limit) > room {
		return nil
	}
	return binary.BigEndian.AppendUint64(bytes.Clone(start[:at]), from+uint64(2*limit)*gap)
}

func (d *etcdDriver) Delete(ctx context.Context, key []byte) error {
	c, done := d.client()
	defer done()
	_, err := c.Delete(ctx, string(key))
	return err
}

func (d *etcdDriver) Close() {
	for _, c := range d.clients {
		_ = c.Close() // connections only; nothing is lost
	}
}

// EtcdServers are the addresses at which the members serve clients.
func EtcdServers(ctx context.Context, endpoints []string) ([]string, error) {
	c, err := newEtcdClient(endpoints)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	resp, err := c.MemberList(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the members of etcd: %w", err)
	}
	addrs := hostPorts(endpoints)
	for _, m := range resp.Members {
		addrs = append(addrs, hostPorts(m.ClientURLs)...)
	}
	return addrs, nil
}
