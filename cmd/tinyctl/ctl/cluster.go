package ctl

import (
	"context"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/tinykv/tinykv/cmd/tinyctl/contract"
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
	// Heartbeat is when the last one came, nil if none has.
	Heartbeat *time.Time `json:"last_heartbeat"`
	// Silent is for how long there was none.
	Silent string `json:"-"`
}

type peerRow struct {
	ID    uint64 `json:"id"`
	Store uint64 `json:"store_id"`
	// Learner is a replica without a vote, on its way to one.
	Learner bool `json:"learner,omitempty"`
}

type regionRow struct {
	ID uint64 `json:"id"`
	rangeJSON
	Version uint64    `json:"version"`
	ConfVer uint64    `json:"conf_ver"`
	Leader  uint64    `json:"leader_store_id"`
	Peers   []peerRow `json:"peers"`
	Pending []uint64  `json:"pending_peers"`
	// from and to are the bounds as tables have them.
	from, to string
}

// rangeJSON is a range of keys: see package contract.
type rangeJSON struct {
	Start    *string `json:"start_key,omitempty"`
	StartHex string  `json:"start_key_hex"`
	End      *string `json:"end_key,omitempty"`
	EndHex   string  `json:"end_key_hex"`
}

func rangeOf(start, end []byte) rangeJSON {
	return rangeJSON{
		contract.Text(start), hex.EncodeToString(start),
		contract.Text(end), hex.EncodeToString(end),
	}
}

// voters is how many replicas have a vote.
func (r *regionRow) voters() int {
	n := 0
	for _, p := range r.Peers {
		if !p.Learner {
			n++
		}
	}
	return n
}

func toRegionRow(r *placement.Region) regionRow {
	row := regionRow{
		ID: r.Meta.Id, rangeJSON: rangeOf(r.Meta.StartKey, r.Meta.EndKey),
		from: encode("text", r.Meta.StartKey), to: encode("text", r.Meta.EndKey),
		Version: r.Meta.GetRegionEpoch().GetVersion(),
		ConfVer: r.Meta.GetRegionEpoch().GetConfVer(), Leader: r.Leader.GetStoreId(),
		Peers: []peerRow{}, Pending: []uint64{},
	}
	for _, p := range r.Meta.Peers {
		row.Peers = append(row.Peers, peerRow{p.Id, p.StoreId, p.Role == metapb.PeerRole_Learner})
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

func (a *app) printStores(rows []storeRow) error {
	var out [][]string
	for _, r := range rows {
		out = append(out, []string{
			strconv.FormatUint(r.ID, 10), r.Address, r.State, strconv.Itoa(r.Regions),
			strconv.Itoa(r.Leaders),
			humanize.IBytes(r.Used), humanize.IBytes(r.Available), r.Silent,
		})
	}
	return a.table([]string{
		"STORE", "ADDRESS", "STATE", "REGIONS", "LEADERS", "USED", "FREE", "HEARTBEAT",
	}, out)
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
			strconv.FormatUint(r.ID, 10), shorten(r.from, "-inf"), shorten(r.to, "+inf"),
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

func (a *app) storeCmd() *cobra.Command {
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List all stores", Args: args(cobra.NoArgs),
	}
	list.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), a.timeout)
		defer cancel()
		rows, err := a.stores(ctx)
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
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List all regions in key order",
		Args: args(cobra.NoArgs),
	}
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
	key := &cobra.Command{
		Use: "key KEY", Short: "Show the region that has a key", Args: args(cobra.ExactArgs(1)),
	}
	key.Flags().StringVarP(&a.encoding, "encoding", "e", "text",
		"form of the key: text, hex or escaped")
	key.RunE = func(cmd *cobra.Command, argv []string) error {
		k, err := decode(a.encoding, argv[0])
		if err != nil {
			return err
		}
		return a.showRegion(cmd,
			func(ctx context.Context, p *placement.Client) (*placement.Region, error) {
				return p.GetRegion(ctx, k)
			})
	}
	return group("region", "Look at regions and change them", append(a.regionCmds(), list, key)...)
}

func (a *app) withPlacement(
	cmd *cobra.Command, do func(context.Context, *placement.Client) error,
) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), a.timeout)
	defer cancel()
	p, err := a.placement(ctx)
	if err != nil {
		return err
	}
	defer p.Close()
	return do(ctx, p)
}

func (a *app) showRegion(
	cmd *cobra.Command, find func(context.Context, *placement.Client) (*placement.Region, error),
) error {
	return a.withPlacement(cmd, func(ctx context.Context, p *placement.Client) error {
		r, err := find(ctx, p)
		if err != nil {
			return err
		}
		if r == nil {
			return notFoundf("no such region is known")
		}
		if a.output == "json" {
			return a.json(toRegionRow(r))
		}
		return a.printRegions([]regionRow{toRegionRow(r)})
	})
}
