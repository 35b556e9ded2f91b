package rig

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/tinykv/tinykv/cmd/tinyctl/loadgen"
	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
	"github.com/tinykv/tinykv/kv/client"
	"github.com/tinykv/tinykv/kv/client/txn"
	"github.com/tinykv/tinykv/pkg/security"
	placement "github.com/tinykv/tinykv/scheduler/client"
)

// TinyKV is one placement service and three stores with the default configuration.
type TinyKV struct {
	*localcluster.Cluster
	dir string
	txn bool
}

// NewTinyKV lays a cluster out; it starts nothing. storeConfig is TOML for the stores.
func NewTinyKV(b Bins, stores int, storeConfig string) (*TinyKV, error) {
	return newTinyKV(b, localcluster.Options{Stores: stores, StoreConfig: storeConfig})
}

func newTinyKV(b Bins, o localcluster.Options) (*TinyKV, error) {
	dir, err := os.MkdirTemp("", "tinykv-bench-tinykv-")
	if err != nil {
		return nil, err
	}
	o.BinDir, o.Dir = b.TinyKV, dir
	c, err := localcluster.New(o)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return &TinyKV{Cluster: c, dir: dir}, nil
}

// NewTinyKVTxn is NewTinyKV in mode txn: each operation of its drivers is a transaction.
func NewTinyKVTxn(b Bins, stores int) (*TinyKV, error) {
	t, err := newTinyKV(b,
		localcluster.Options{Stores: stores, SchedulerConfig: "mode = \"txn\"\n"})
	if err == nil {
		t.txn = true
	}
	return t, err
}

// Name implements System.
func (t *TinyKV) Name() string {
	if t.txn {
		return "txn"
	}
	return "tinykv"
}

// PIDs implements System.
func (t *TinyKV) PIDs() []int { return pids(t.Processes()) }

// StorePIDs are the stores' processes only.
func (t *TinyKV) StorePIDs() []int { return pids(t.Stores) }

// Stop implements System.
func (t *TinyKV) Stop() {
	for _, p := range t.Processes() {
		p.Kill()
	}
	_ = os.RemoveAll(t.dir) // a temporary directory
}

// tinykvDriver closes the client with the driver.
type tinykvDriver struct {
	loadgen.Driver
	c *client.Client
}

func (d tinykvDriver) Close() { d.c.Close() }

// Open implements System.
func (t *TinyKV) Open(ctx context.Context, m Mode) (loadgen.Driver, error) {
	o := client.Options{Conns: m.Conns, Unary: m.Unary}
	if o.Conns == 0 {
		o.Conns = loadgen.DefaultConns(m.Unary)
	}
	if m.Failover {
		o.AttemptTimeout = 300 * time.Millisecond
	}
	c, err := client.Open(ctx, t.Endpoints(), o)
	if err != nil {
		return nil, err
	}
	if t.txn {
		return openTxn(c), nil
	}
	name := "tinykv"
	if m.Unary {
		name = "tinykv-unary"
	}
	return tinykvDriver{loadgen.NewTinyKV(c, name), c}, nil
}

// openTxn makes a driver of transactions, which closes both clients.
func openTxn(c *client.Client) loadgen.Driver {
	t := txn.New(c, c.Placement())
	return txnDriver{loadgen.NewTxn(t), t, c}
}

type txnDriver struct {
	loadgen.Driver
	t *txn.Client
	c *client.Client
}

func (d txnDriver) Close() {
	d.t.Close()
	d.c.Close()
}

// withPlacement runs f with a client of the placement service.
func (t *TinyKV) withPlacement(ctx context.Context, f func(p *placement.Client) error) error {
	p, err := placement.New(ctx, t.Endpoints())
	if err != nil {
		return err
	}
	defer p.Close()
	return f(p)
}

// Leader implements System: of the region of the benchmark's first key.
func (t *TinyKV) Leader(ctx context.Context) (out *localcluster.Process, err error) {
	err = t.withPlacement(ctx, func(p *placement.Client) error {
		r, err := p.GetRegion(ctx, loadgen.Key(0, 16))
		if err != nil {
			return err
		}
		if r == nil || r.Leader.GetStoreId() == 0 {
			return errors.New("the region has no leader")
		}
		st, err := p.GetStore(ctx, r.Leader.StoreId)
		if err != nil {
			return err
		}
		out, err = byAddr(t.Stores, st.Address)
		return err
	})
	return out, err
}

// Regions lists all regions.
func (t *TinyKV) Regions(ctx context.Context) (out []*placement.Region, err error) {
	err = t.withPlacement(ctx, func(p *placement.Client) error {
		out, err = allRegions(ctx, p)
		return err
	})
	return out, err
}

func allRegions(ctx context.Context, p *placement.Client) (out []*placement.Region, err error) {
	var start []byte
	for {
		page, err := p.ScanRegions(ctx, start, nil, 1000)
		if err != nil || len(page) == 0 {
			return out, err
		}
		out = append(out, page...)
		if start = page[len(page)-1].Meta.EndKey; len(start) == 0 {
			return out, nil
		}
	}
}

// WaitReplicas returns once every region has n voters, none pending, and a leader.
func (t *TinyKV) WaitReplicas(ctx context.Context, n int) error {
	return t.withPlacement(ctx, func(p *placement.Client) error {
		return poll(ctx, 5*time.Millisecond, func() error {
			regions, err := allRegions(ctx, p)
			if err != nil {
				return err
			}
			if len(regions) == 0 {
				return errors.New("no region")
			}
			for _, r := range regions {
				if r.Voters() < n || len(r.PendingPeers) > 0 || r.Leader.GetId() == 0 {
					return fmt.Errorf("region %d has %d voters, %d pending", r.Meta.Id, r.Voters(),
						len(r.PendingPeers))
				}
			}
			return nil
		})
	})
}

// WaitSettled returns when no region has changed its leader or its peers for the time quiet, or
// when limit is over.
func (t *TinyKV) WaitSettled(ctx context.Context, quiet, limit time.Duration) error {
	return t.withPlacement(ctx, func(p *placement.Client) error {
		end := time.Now().Add(limit)
		before, since := "", time.Now()
		return poll(ctx, 50*time.Millisecond, func() error {
			regions, err := allRegions(ctx, p)
			if err != nil {
				return err
			}
			var b strings.Builder
			for _, r := range regions {
				fmt.Fprintln(&b, r.Meta.Id, r.Meta.Peers, r.Leader.GetId(), len(r.PendingPeers))
			}
			if now := b.String(); now != before {
				before, since = now, time.Now()
			}
			if time.Now().Before(end) && time.Since(since) < quiet {
				return errors.New("regions still move")
			}
			return nil
		})
	})
}

// askAgain is how long a split may take before it is asked for again.
const askAgain = 3 * time.Second

// Split splits regions at keys, which are in order, and returns when all of them are borders. A
// store cuts a region in two at a time, so that each region is cut at the middle one of its keys.
func (t *TinyKV) Split(ctx context.Context, keys [][]byte) error {
	type ask struct {
		version uint64
		at      time.Time
	}
	// by region: it is asked once per version, and again if nothing comes of it
	asked := map[uint64]ask{}
	return t.withPlacement(ctx, func(p *placement.Client) error {
		return poll(ctx, 100*time.Millisecond, func() error {
			regions, err := allRegions(ctx, p)
			if err != nil {
				return err
			}
			left := 0
			rest := keys
			for _, r := range regions {
				inside, after := keysInside(rest, r.Meta.StartKey, r.Meta.EndKey)
				rest = after
				left += len(inside)
				id, version := r.Meta.Id, r.Meta.GetRegionEpoch().GetVersion()
				if last := asked[id]; len(inside) > 0 &&
					(last.version != version || time.Since(last.at) > askAgain) {
					asked[id] = ask{version, time.Now()}
					err = errors.Join(err, t.askSplit(ctx, id, inside[len(inside)/2]))
				}
			}
			if left > 0 || len(regions) <= len(keys) {
				return errors.Join(err,
					fmt.Errorf("%d regions, %d splits to do", len(regions), left))
			}
			return nil
		})
	})
}

// keysInside are those strictly within (start, end); after are those at end and beyond.
func keysInside(keys [][]byte, start, end []byte) (inside, after [][]byte) {
	for i, k := range keys {
		if len(end) > 0 && bytes.Compare(k, end) >= 0 {
			return inside, keys[i:]
		}
		if bytes.Compare(k, start) > 0 {
			inside = append(inside, k)
		}
	}
	return inside, nil
}

// askSplit plans a split. A region that is busy with another plan is asked again by the caller.
func (t *TinyKV) askSplit(ctx context.Context, region uint64, key []byte) error {
	return t.Post(ctx, fmt.Sprintf("/regions/%d/split", region),
		map[string][]string{"keys": {hex.EncodeToString(key)}})
}

// TransferLeader plans a change of a region's leader.
func (t *TinyKV) TransferLeader(ctx context.Context, region, store uint64) error {
	return t.Post(ctx, fmt.Sprintf("/regions/%d/transfer-leader", region),
		map[string]uint64{"to": store})
}

// Post asks the placement service's API for a change.
func (t *TinyKV) Post(ctx context.Context, path string, body any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost,
		"http://"+t.Endpoints()[0]+"/api/v1"+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	req.Header.Set(security.ProofHeader, "1")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s: %s: %s", path, resp.Status, bytes.TrimSpace(text))
	}
	return err
}

// Profile takes a CPU profile of a store over the given time and writes it to file.
func Profile(
	ctx context.Context, store *localcluster.Process, took time.Duration, file string,
) error {
	url := fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", store.Status,
		max(1, int(took.Seconds())))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return os.WriteFile(file, data, 0o600)
}
