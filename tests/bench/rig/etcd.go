package rig

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/tinykv/tinykv/cmd/tinyctl/loadgen"
	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
	"github.com/tinykv/tinykv/pkg/freeport"
)

// Etcd is three members with the default configuration.
type Etcd struct {
	base
	endpoints []string
}

// NewEtcd lays a cluster out; it starts nothing.
func NewEtcd(b Bins) (*Etcd, error) {
	e := &Etcd{}
	var err error
	if e.base, err = newBase("etcd"); err != nil {
		return nil, err
	}
	const members = 3
	ports, err := freeport.Find(2 * members)
	if err != nil {
		return nil, err
	}
	url := func(port int) string { return fmt.Sprintf("http://127.0.0.1:%d", port) }
	var cluster []string
	for i := range members {
		cluster = append(cluster, fmt.Sprintf("m%d=%s", i, url(ports[members+i])))
	}
	for i := range members {
		name, client, peer := fmt.Sprintf("m%d", i), url(ports[i]), url(ports[members+i])
		addr := strings.TrimPrefix(client, "http://")
		e.endpoints = append(e.endpoints, addr)
		e.procs = append(e.procs, localcluster.Command(e.dir, name, b.Etcd, addr,
			"--name", name, "--data-dir", filepath.Join(e.dir, name), "--listen-client-urls",
			client, "--advertise-client-urls", client,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster",
			strings.Join(cluster, ","),
			"--log-level", "warn"))
	}
	return e, nil
}

// Name implements System.
func (e *Etcd) Name() string { return "etcd" }

// Open implements System. Except for failovers everything goes to the leader, etcd's best case.
func (e *Etcd) Open(ctx context.Context, m Mode) (loadgen.Driver, error) {
	if m.Conns == 0 {
		m.Conns = 4
	}
	return loadgen.NewEtcd(ctx, loadgen.EtcdOptions{
		Endpoints: e.endpoints, Conns: m.Conns, LeaderOnly: !m.Failover, Keys: m.Keys, Txn: m.Txn,
	})
}

// Leader implements System.
func (e *Etcd) Leader(ctx context.Context) (*localcluster.Process, error) {
	addr, err := loadgen.EtcdLeader(ctx, e.endpoints)
	if err != nil {
		return nil, err
	}
	return byAddr(e.procs, addr)
}
