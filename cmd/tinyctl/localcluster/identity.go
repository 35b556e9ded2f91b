package localcluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"
)

// Something else may listen where a process of this cluster should: another playground, a real
// cluster. Stores that connect there would become members of it, and be missed by it when they are
// gone. So the ports are tried before anything is started; each scheduler must then show the token
// that its process was given, and the stores are started with the cluster's id and join no other,
// also if the port changes hands later.
const (
	instanceEnv    = "TINYKV_INSTANCE" // tinyscheduler's; see its package cli
	instanceHeader = "Tinykv-Instance"
)

// checkPorts refuses addresses of processes that do not run at which somebody listens.
func (c *Cluster) checkPorts() error {
	for _, p := range c.Processes() {
		if p.Running() {
			continue
		}
		for _, addr := range p.ports {
			l, err := net.Listen("tcp", addr)
			if errors.Is(err, syscall.EADDRINUSE) {
				return fmt.Errorf(
					"%s, where %s should listen, is in use by another process, perhaps of another cluster; end it "+
						"or choose other ports (--base-port)", addr, p.Name)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", p.Name, err)
			}
			_ = l.Close()
		}
	}
	return nil
}

// identify makes sure that the schedulers are this cluster's, and tells the stores which cluster
// that is.
func (c *Cluster) identify(ctx context.Context) error {
	for _, p := range c.Schedulers {
		id, err := p.clusterID(ctx)
		if err != nil {
			return err
		}
		if c.id != 0 && c.id != id {
			return fmt.Errorf("%s is of cluster %d, but this is cluster %d", p.Name, id, c.id)
		}
		c.id = id
	}
	for _, p := range c.Stores {
		p.mu.Lock()
		p.first = []string{"--cluster-id", strconv.FormatUint(c.id, 10)}
		p.mu.Unlock()
	}
	return nil
}

// ID is the cluster's id, 0 before the first start.
func (c *Cluster) ID() uint64 { return c.id }

// clusterID asks a scheduler for the id of its cluster, until it is ready, and refuses who is not
// this process.
func (p *Process) clusterID(ctx context.Context) (uint64, error) {
	for {
		id, err := p.askID(ctx)
		if err == nil || errors.Is(err, errStranger) {
			return id, err
		}
		if !p.Running() {
			return 0, fmt.Errorf("%s ended: %s", p.Name, p.LastWords())
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("%s does not become ready: %w", p.Name, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

var errStranger = errors.New("another process answers, perhaps of another cluster")

func (p *Process) askID(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	scheme, client := "http://", http.DefaultClient
	if p.tls != nil {
		scheme = "https://"
		client = &http.Client{
			Transport: &http.Transport{TLSClientConfig: p.tls.Client(), DisableKeepAlives: true},
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+p.Listen+"/api/v1/version",
		nil)
	if err != nil {
		return 0, err
	}
	req.Close = true
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.Header.Get(instanceHeader) != p.token {
		return 0, fmt.Errorf("%s at %s: %w", p.Name, p.Listen, errStranger)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err != nil {
		return 0, err
	}
	var said struct {
		ClusterID uint64 `json:"cluster_id"`
	}
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s answers %s", p.Name, resp.Status)
	}
	if err := json.Unmarshal(body, &said); err != nil || said.ClusterID == 0 {
		return 0, fmt.Errorf("%s: %w", p.Name, errStranger)
	}
	return said.ClusterID, nil
}
