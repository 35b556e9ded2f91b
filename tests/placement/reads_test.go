package placement

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	storeconfig "github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/pkg/embed"
	"github.com/tinykv/tinykv/pkg/security"
	placement "github.com/tinykv/tinykv/scheduler/client"
)

// api asks the placement service's API; any member passes the request to the leader.
func (c *cluster) api(path string, into any) error {
	resp, err := http.Get("http://" + c.Endpoints()[0] + "/api/v1/" + path)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

// hotRegion is a region of the list of hot ones.
type hotRegion struct {
	ID    uint64 `json:"id"`
	Bytes uint64 `json:"bytes_read"`
	Keys  uint64 `json:"keys_read"`
	Wrote uint64 `json:"keys_written"`
}

// TestReadsAreReported: gets and scans show at the region and at the store that leads it, and are
// gone an interval later, also while the region sleeps. A new leader does not report what was
// written before it led.
func TestReadsAreReported(t *testing.T) {
	c := start(t, embed.Config{Stores: 3, TuneStore: func(_ int, s *storeconfig.Config) {
		s.Raftstore.RegionHeartbeatInterval = storeconfig.Dur(300 * time.Millisecond)
		s.Raftstore.StoreHeartbeatInterval = storeconfig.Dur(300 * time.Millisecond)
	}})
	var hot struct {
		Regions []hotRegion `json:"regions"`
	}
	c.eventually(func([]*placement.Region) error { // what was written at the start has passed
		for _, kind := range []string{"read", "write"} {
			if err := c.api("hot?kind="+kind, &hot); err != nil || len(hot.Regions) > 0 {
				return fmt.Errorf("%s: %v, %v", kind, hot, err)
			}
		}
		return nil
	})
	r, err := c.cl.Placement().GetRegion(c.ctx, key(7))
	require.NoError(t, err)
	c.eventually(func([]*placement.Region) error {
		for range 10 {
			_, _, err := c.cl.Get(c.ctx, key(7))
			require.NoError(t, err)
		}
		if err := c.api("hot?kind=read", &hot); err != nil || len(hot.Regions) != 1 {
			return fmt.Errorf("%v, %v", hot, err)
		}
		if h := hot.Regions[0]; h.ID != r.Meta.Id || h.Keys < 10 || h.Bytes != h.Keys*(16<<10+3) {
			return fmt.Errorf("region %d: %+v", r.Meta.Id, h)
		}
		return nil
	})
	c.eventually(func([]*placement.Region) error { // a scan reads all regions
		pairs, err := c.cl.Scan(c.ctx, nil, nil, 100)
		require.NoError(t, err)
		require.Len(t, pairs, 40)
		var stores struct {
			Stores []struct {
				Leaders int `json:"leader_count"`
				Flow    struct {
					Keys  float64 `json:"keys_read"`
					Bytes float64 `json:"bytes_read"`
				} `json:"flow"`
			} `json:"stores"`
		}
		if err := c.api("stores", &stores); err != nil {
			return err
		}
		for _, s := range stores.Stores {
			if s.Leaders > 0 && (s.Flow.Keys == 0 || s.Flow.Bytes < s.Flow.Keys*(16<<10)) {
				return fmt.Errorf("%+v", stores)
			}
		}
		return nil
	})
	c.eventually(func([]*placement.Region) error {
		if err := c.api("hot?kind=read", &hot); err != nil || len(hot.Regions) > 0 {
			return fmt.Errorf("%v, %v", hot, err)
		}
		return nil
	})
	to := r.Meta.Peers[0].StoreId
	if r.Leader.StoreId == to {
		to = r.Meta.Peers[1].StoreId
	}
	c.transfer(r.Meta.Id, to)
	require.NoError(t, c.api("hot?kind=write", &hot))
	require.Empty(t, hot.Regions)
}

// transfer has a store lead a region, and returns when the placement service knows.
func (c *cluster) transfer(region, store uint64) {
	c.t.Helper()
	url := fmt.Sprintf("http://%s/api/v1/regions/%d/transfer-leader", c.Endpoints()[0], region)
	req, err := http.NewRequestWithContext(c.ctx, http.MethodPost, url,
		strings.NewReader(fmt.Sprintf(`{"to": %d}`, store)))
	require.NoError(c.t, err)
	req.Header.Set(security.ProofHeader, "1")
	resp, err := http.DefaultClient.Do(req)
	require.NoError(c.t, err)
	require.NoError(c.t, resp.Body.Close())
	require.Equal(c.t, http.StatusOK, resp.StatusCode)
	c.eventually(func([]*placement.Region) error {
		r, err := c.cl.Placement().GetRegionByID(c.ctx, region)
		if err == nil && r.Leader.GetStoreId() != store {
			err = fmt.Errorf("led by %v", r.Leader)
		}
		return err
	})
}
