package ctl

import (
	"cmp"
	"context"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/tinykv/tinykv/pkg/clustermode"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	placement "github.com/tinykv/tinykv/scheduler/client"
)

// storeRow is a store as the tables and JSON show it.
type storeRow struct {
	ID        uint64 `json:"id"`
	Address   string `json:"address"`
	Status    string `json:"status_address,omitempty"`
	State     string `json:"state"`
	Regions   int    `json:"regions"`
	Leaders   int    `json:"leaders"`
	Used      uint64 `json:"used_bytes"`
	Available uint64 `json:"available_bytes"`
	Heartbeat string `json:"last_heartbeat,omitempty"`
}

type peerRow struct {
	ID    uint64 `json:"id"`
	Store uint64 `json:"store_id"`
}

type regionRow struct {
	ID      uint64    `json:"id"`
	Start   string    `json:"start_key"`
	End     string    `json:"end_key"`
	Version uint64    `json:"version"`
	ConfVer uint64    `json:"conf_ver"`
	Leader  uint64    `json:"leader_store_id"`
	Peers   []peerRow `json:"peers"`
	Pending []uint64  `json:"pending_peers,omitempty"`
}

func toRegionRow(r *placement.Region) regionRow {
	row := regionRow{
		ID: r.Meta.Id, Start: encode("text", r.Meta.StartKey), End: encode("text", r.Meta.EndKey),
		Version: r.Meta.GetRegionEpoch().GetVersion(), ConfVer: r.Meta.GetRegionEpoch().GetConfVer(), Leader: r.Leader.GetStoreId(),
	}
	for _, p := range r.Meta.Peers {
		row.Peers = append(row.Peers, peerRow{p.Id, p.StoreId})
	}
	for _, p := range r.PendingPeers {
		row.Pending = append(row.Pending, p.Id)
	}
	return row
}

func (a *app) regions(ctx context.Context, p *placement.Client) ([]regionRow, error) {
	rs, err := p.ScanRegions(ctx, nil, nil, 0)
	if err != nil {
		return nil, err
	}
	rows := make([]regionRow, 0, len(rs))
	for _, r := range rs {
		rows = append(rows, toRegionRow(r))
	}
	return rows, nil
}

func (a *app) stores(ctx context.Context, p *placement.Client, regions []regionRow) ([]storeRow, error) {
	stores, err := p.GetAllStores(ctx, false)
	if err != nil {
		return nil, err
	}
	rows := make([]storeRow, 0, len(stores))
	for _, st := range stores {
		row := storeRow{ID: st.Id, Address: st.Address, Status: st.StatusAddress, State: st.State.String()}
		if st.State != metapb.StoreState_Tombstone {
			full, stats, err := p.GetStoreStats(ctx, st.Id)
			if err != nil {
				return nil, err
			}
			row.Used, row.Available = stats.GetUsedSize(), stats.GetAvailable()
			if hb := full.GetLastHeartbeat(); hb > 0 {
				age := time.Since(time.Unix(0, hb))
				row.Heartbeat = age.Round(time.Second).String() + " ago"
				if age > 20*time.Second && st.State == metapb.StoreState_Up {
					row.State = "Disconnected"
				}
			}
		}
		for _, r := range regions {
			for _, q := range r.Peers {
				if q.Store == st.Id {
					row.Regions++
				}
			}
			if r.Leader == st.Id {
				row.Leaders++
			}
		}
		rows = append(rows, row)
	}
	sort.Slice(rows, func(i, j int) bool { return rows[i].ID < rows[j].ID })
	return rows, nil
}

func (a *app) printStores(rows []storeRow) error {
	var out [][]string
	for _, r := range rows {
		out = append(out, []string{
			strconv.FormatUint(r.ID, 10), r.Address, r.State, strconv.Itoa(r.Regions), strconv.Itoa(r.Leaders),
			humanize.IBytes(r.Used), humanize.IBytes(r.Available), r.Heartbeat,
		})
	}
	return a.table([]string{"STORE", "ADDRESS", "STATE", "REGIONS", "LEADERS", "USED", "FREE", "HEARTBEAT"}, out)
}

func (a *app) printRegions(rows []regionRow) error {
	var out [][]string
	for _, r := range rows {
		var peers []string
		for _, p := range r.Peers {
			s := strconv.FormatUint(p.Store, 10)
			if p.Store == r.Leader {
				s += "*"
			}
			peers = append(peers, s)
		}
		out = append(out, []string{
			strconv.FormatUint(r.ID, 10), shorten(r.Start, "-inf"), shorten(r.End, "+inf"),
			fmt.Sprintf("%d/%d", r.Version, r.ConfVer), strings.Join(peers, " "),
		})
	}
	return a.table([]string{"REGION", "START", "END", "VERSION/CONF", "STORES (*LEADER)"}, out)
}

func shorten(s, empty string) string {
	if s == "" {
		return empty
	}
	if r := []rune(s); len(r) > 32 {
		return string(r[:31]) + "…"
	}
	return s
}

func (a *app) statusCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "status", Short: "Show the cluster's health; exit code 1 if something is wrong", Args: args(cobra.NoArgs)}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), a.timeout)
		defer cancel()
		p, err := a.placement(ctx)
		if err != nil {
			return err
		}
		defer p.Close()
		cfg, err := p.GetClusterConfig(ctx)
		if err != nil {
			return err
		}
		regions, err := a.regions(ctx, p)
		if err != nil {
			return err
		}
		stores, err := a.stores(ctx, p, regions)
		if err != nil {
			return err
		}
		faults := findFaults(stores, regions, int(cfg.GetMaxPeerCount()))
		if a.output == "json" {
			err = a.json(map[string]any{
				"cluster_id": strconv.FormatUint(p.ClusterID(), 10), "healthy": len(faults) == 0, "faults": faults,
				"stores": stores, "regions": len(regions), "replicas": cfg.GetMaxPeerCount(),
				"mode": cmp.Or(cfg.GetMode(), string(clustermode.Raw)),
			})
		} else {
			fmt.Fprintf(a.stdout, "Cluster %d: %d stores, %d regions, %d replicas wanted.\n", p.ClusterID(), len(stores), len(regions), cfg.GetMaxPeerCount())
			if cfg.GetMode() == string(clustermode.Txn) {
				fmt.Fprintln(a.stdout, "It holds transactions (mode txn).")
			}
			if len(faults) == 0 {
				fmt.Fprintln(a.stdout, "Everything is fine.")
			}
			for _, f := range faults {
				fmt.Fprintln(a.stdout, "! "+f)
			}
			err = a.printStores(stores)
		}
		if err == nil && len(faults) > 0 {
			err = errSilent
		}
		return err
	}
	return cmd
}

// findFaults says in words what is not as it should be.
func findFaults(stores []storeRow, regions []regionRow, replicas int) []string {
	faults := []string{}
	up := 0
	for _, s := range stores {
		if s.State == "Up" {
			up++
		} else if s.State != "Tombstone" {
			faults = append(faults, fmt.Sprintf("store %d at %s is %s", s.ID, s.Address, s.State))
		}
	}
	want := min(replicas, max(up, 1))
	few, leaderless, pending := 0, 0, 0
	for _, r := range regions {
		if len(r.Peers) < want {
			few++
		}
		if r.Leader == 0 {
			leaderless++
		}
		if len(r.Pending) > 0 {
			pending++
		}
	}
	for _, f := range []struct {
		n    int
		text string
	}{{few, "have too few replicas"}, {leaderless, "have no leader"}, {pending, "have a replica that is catching up"}} {
		if f.n > 0 {
			faults = append(faults, fmt.Sprintf("%d of %d regions %s", f.n, len(regions), f.text))
		}
	}
	if len(regions) == 0 {
		faults = append(faults, "no region is known yet")
	}
	return faults
}

func (a *app) storeCmd() *cobra.Command {
	list := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List all stores", Args: args(cobra.NoArgs)}
	list.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), a.timeout)
		defer cancel()
		p, err := a.placement(ctx)
		if err != nil {
			return err
		}
		defer p.Close()
		regions, err := a.regions(ctx, p)
		if err != nil {
			return err
		}
		rows, err := a.stores(ctx, p, regions)
		if err != nil {
			return err
		}
		if a.output == "json" {
			return a.json(rows)
		}
		return a.printStores(rows)
	}
	return group("store", "Look at stores and change them", append(a.storeCmds(), list)...)
}

func (a *app) regionCmd() *cobra.Command {
	list := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List all regions in key order", Args: args(cobra.NoArgs)}
	list.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.withPlacement(cmd, func(ctx context.Context, p *placement.Client) error {
			rows, err := a.regions(ctx, p)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(rows)
			}
			return a.printRegions(rows)
		})
	}
	key := &cobra.Command{Use: "key KEY", Short: "Show the region that has a key", Args: args(cobra.ExactArgs(1))}
	key.Flags().StringVarP(&a.encoding, "encoding", "e", "text", "form of the key: text, hex or escaped")
	key.RunE = func(cmd *cobra.Command, argv []string) error {
		k, err := decode(a.encoding, argv[0])
		if err != nil {
			return err
		}
		return a.showRegion(cmd, func(ctx context.Context, p *placement.Client) (*placement.Region, error) { return p.GetRegion(ctx, k) })
	}
	return group("region", "Look at regions and change them", append(a.regionCmds(), list, key)...)
}

func (a *app) withPlacement(cmd *cobra.Command, do func(context.Context, *placement.Client) error) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), a.timeout)
	defer cancel()
	p, err := a.placement(ctx)
	if err != nil {
		return err
	}
	defer p.Close()
	return do(ctx, p)
}

func (a *app) showRegion(cmd *cobra.Command, find func(context.Context, *placement.Client) (*placement.Region, error)) error {
	return a.withPlacement(cmd, func(ctx context.Context, p *placement.Client) error {
		r, err := find(ctx, p)
		if err != nil {
			return err
		}
		if r == nil {
			return fmt.Errorf("no such region is known")
		}
		if a.output == "json" {
			return a.json(toRegionRow(r))
		}
		return a.printRegions([]regionRow{toRegionRow(r)})
	})
}
