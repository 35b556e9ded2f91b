package tikv

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What pd-ctl (of PD's release 6.6) and other tools of PD decode, with the names and kinds of their
// types. A field that is not here is one that PD does not have.

type pdPeer struct {
	ID        uint64 `json:"id"`
	StoreID   uint64 `json:"store_id"`
	Role      int    `json:"role"`
	RoleName  string `json:"role_name"`
	IsLearner bool   `json:"is_learner"`
	IsWitness bool   `json:"is_witness"`
}

type pdRegion struct {
	ID       uint64 `json:"id"`
	StartKey string `json:"start_key"`
	EndKey   string `json:"end_key"`
	Epoch    struct {
		ConfVer uint64 `json:"conf_ver"`
		Version uint64 `json:"version"`
	} `json:"epoch"`
	Peers     []pdPeer `json:"peers"`
	Leader    pdPeer   `json:"leader"`
	DownPeers []struct {
		Peer        pdPeer `json:"peer"`
		DownSeconds uint64 `json:"down_seconds"`
	} `json:"down_peers"`
	PendingPeers    []pdPeer `json:"pending_peers"`
	CPUUsage        uint64   `json:"cpu_usage"`
	WrittenBytes    uint64   `json:"written_bytes"`
	ReadBytes       uint64   `json:"read_bytes"`
	WrittenKeys     uint64   `json:"written_keys"`
	ReadKeys        uint64   `json:"read_keys"`
	ApproximateSize int64    `json:"approximate_size"`
	ApproximateKeys int64    `json:"approximate_keys"`
}

type pdRegions struct {
	Count   int        `json:"count"`
	Regions []pdRegion `json:"regions"`
}

type pdStore struct {
	Store struct {
		ID             uint64              `json:"id"`
		Address        string              `json:"address"`
		State          int                 `json:"state"`
		NodeState      int                 `json:"node_state"`
		Labels         []map[string]string `json:"labels"`
		Version        string              `json:"version"`
		PeerAddress    string              `json:"peer_address"`
		StatusAddress  string              `json:"status_address"`
		GitHash        string              `json:"git_hash"`
		StartTimestamp int64               `json:"start_timestamp"`
		DeployPath     string              `json:"deploy_path"`
		LastHeartbeat  int64               `json:"last_heartbeat"`
		StateName      string              `json:"state_name"`
	} `json:"store"`
	Status struct {
		Capacity        string     `json:"capacity"`
		Available       string     `json:"available"`
		UsedSize        string     `json:"used_size"`
		LeaderCount     int        `json:"leader_count"`
		LeaderWeight    float64    `json:"leader_weight"`
		LeaderScore     float64    `json:"leader_score"`
		LeaderSize      int64      `json:"leader_size"`
		RegionCount     int        `json:"region_count"`
		RegionWeight    float64    `json:"region_weight"`
		RegionScore     float64    `json:"region_score"`
		RegionSize      int64      `json:"region_size"`
		SlowScore       uint64     `json:"slow_score"`
		PendingPeers    int        `json:"pending_peer_count"`
		SendingSnaps    uint32     `json:"sending_snap_count"`
		ReceivingSnaps  uint32     `json:"receiving_snap_count"`
		IsBusy          bool       `json:"is_busy"`
		StartTS         *time.Time `json:"start_ts"`
		LastHeartbeatTS *time.Time `json:"last_heartbeat_ts"`
		Uptime          string     `json:"uptime"`
	} `json:"status"`
}

type pdStores struct {
	Count  int       `json:"count"`
	Stores []pdStore `json:"stores"`
}

type pdMember struct {
	Name          string   `json:"name"`
	MemberID      uint64   `json:"member_id"`
	PeerURLs      []string `json:"peer_urls"`
	ClientURLs    []string `json:"client_urls"`
	Priority      int      `json:"leader_priority"`
	DeployPath    string   `json:"deploy_path"`
	BinaryVersion string   `json:"binary_version"`
	GitHash       string   `json:"git_hash"`
}

// readPD asks for a path of PD's interface and decodes the answer, which must have no other fields
// than out.
func (c *cluster) readPD(t *testing.T, path string, out any) {
	t.Helper()
	resp, err := http.Get("http://" + c.scheduler.addr + "/pd/api/v1" + path)
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, "%s: %s", path, text)
	dec := json.NewDecoder(strings.NewReader(string(text)))
	dec.DisallowUnknownFields()
	require.NoError(t, dec.Decode(out), "%s: %s", path, text)
}

// pdctlReads decodes what the commands of pd-ctl decode, in a cluster with several regions and
// three stores.
func (c *cluster) pdctlReads(t *testing.T) {
	var stores pdStores
	c.readPD(t, "/stores", &stores)
	require.Len(t, stores.Stores, 3)
	require.Equal(t, 3, stores.Count)
	for _, s := range stores.Stores {
		require.Equal(t, "Up", s.Store.StateName)
		require.NotEmpty(t, s.Store.Address)
		require.Regexp(t, `^[0-9.]+([KMGTPE]i)?B$`, s.Status.Capacity)
	}
	var regions pdRegions
	c.readPD(t, "/regions", &regions)
	require.Greater(t, regions.Count, 1)
	require.Len(t, regions.Regions, regions.Count)
	second := regions.Regions[1]
	require.Equal(t, "63", second.StartKey, "keys are in hexadecimal capitals")
	var one pdRegion
	c.readPD(t, "/region/key/63?format=hex", &one)
	require.Equal(t, second.ID, one.ID)
	for path, count := range map[string]int{
		"/regions/size?limit=1": 1, "/regions/writeflow": regions.Count,
		"/regions/check/extra-peer": 0, "/regions/check/offline-peer": 0,
	} {
		var list pdRegions
		c.readPD(t, path, &list)
		require.Equal(t, count, list.Count, path)
	}
	var bars []struct{ Start, End, Count int64 }
	c.readPD(t, "/regions/check/hist-size?bound=10", &bars)
	require.NotEmpty(t, bars)
	var holes [][]string
	c.readPD(t, "/regions/range-holes", &holes)
	require.Empty(t, holes)
	var members struct {
		Header     map[string]any `json:"header"`
		Members    []pdMember     `json:"members"`
		Leader     pdMember       `json:"leader"`
		EtcdLeader pdMember       `json:"etcd_leader"`
	}
	c.readPD(t, "/members", &members)
	require.Equal(t, "scheduler", members.Leader.Name)
	var health []struct {
		Name       string   `json:"name"`
		MemberID   uint64   `json:"member_id"`
		ClientURLs []string `json:"client_urls"`
		Health     bool     `json:"health"`
	}
	c.readPD(t, "/health", &health)
	require.True(t, len(health) == 1 && health[0].Health)
	var replication struct {
		MaxReplicas    uint64 `json:"max-replicas"`
		Labels         string `json:"location-labels"`
		Strictly       bool   `json:"strictly-match-label,string"`
		PlacementRules bool   `json:"enable-placement-rules,string"`
		Isolation      string `json:"isolation-level"`
	}
	c.readPD(t, "/config/replicate", &replication)
	require.EqualValues(t, 3, replication.MaxReplicas)
	var names []string
	c.readPD(t, "/schedulers", &names)
	require.Contains(t, names, "balance-leader-scheduler")
	c.readPD(t, "/operators", &names)
}
