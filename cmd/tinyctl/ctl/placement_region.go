package ctl

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/tinykv/tinykv/cmd/tinyctl/keyspace"
	"github.com/tinykv/tinykv/pkg/clustermode"
	"github.com/tinykv/tinykv/pkg/memcomparable"
	placement "github.com/tinykv/tinykv/scheduler/client"
)

// defects are what `region check` can look for, in the API's words.
var defects = []string{
	"miss-peer", "extra-peer", "down-peer", "pending-peer", "offline-peer", "no-leader", "empty",
}

// regionInfo is a region as the API describes it; keys are hexadecimal.
type regionInfo struct {
	ID      uint64 `json:"id"`
	Start   string `json:"start_key"`
	End     string `json:"end_key"`
	Version uint64 `json:"version"`
	ConfVer uint64 `json:"conf_ver"`
	Term    uint64 `json:"term"`
	Peers   []struct {
		ID      uint64 `json:"id"`
		Store   uint64 `json:"store_id"`
		Learner bool   `json:"learner"`
		Leader  bool   `json:"leader"`
		Pending bool   `json:"pending"`
		Down    bool   `json:"down"`
	} `json:"peers"`
	SizeMiB   int64    `json:"size_mib"`
	Keys      int64    `json:"keys"`
	Written   uint64   `json:"bytes_written"`
	Read      uint64   `json:"bytes_read"`
	Confirmed bool     `json:"confirmed"`
	Defects   []string `json:"defects"`
}

// regionCmds are the commands of `region` that go to the placement service's API.
func (a *app) regionCmds() []*cobra.Command {
	return []*cobra.Command{
		command("show ID", "Show a region, its peers and what is wrong with it", a.regionShow),
		a.regionCheckCmd(), a.regionSplitCmd(), a.regionScatterCmd(),
		a.regionMoveCmd("transfer-leader ID STORE", "Have the replica on a store lead", "to"),
		a.regionMoveCmd("move-peer ID FROM TO", "Move a replica from one store to another", "from",
			"to"),
		a.regionMoveCmd("add-peer ID STORE", "Add a replica on a store", "to"),
		a.regionMoveCmd("merge ID INTO", "Let a region go into its neighbour, whose id stays",
			"into"),
		a.regionMoveCmd("remove-peer ID STORE", "Remove the replica on a store", "from"),
		regionHoldCmd(a),
		command("holds", "List the ranges whose regions are not merged",
			func(cmd *cobra.Command, _ []string) error {
				return showHolds(a, cmd, http.MethodGet, "/holds", nil)
			}), regionReleaseCmd(a),
	}
}

// holdInfo is a range whose regions are not merged; keys are hexadecimal.
type holdInfo struct {
	Start   string  `json:"start"`
	End     string  `json:"end"`
	Seconds float64 `json:"seconds"`
	Why     string  `json:"why"`
}

// showHolds prints the holds that there are after a request.
func showHolds(a *app, cmd *cobra.Command, method, path string, body any) error {
	var out struct {
		Holds []holdInfo `json:"holds"`
	}
	return a.show(cmd, method, path, body, &out, func() error {
		rows := [][]string{}
		for _, h := range out.Holds {
			left := time.Duration(h.Seconds * float64(time.Second)).Round(time.Second)
			rows = append(rows,
				[]string{shownKey(h.Start, "-inf"), shownKey(h.End, "+inf"), left.String(), h.Why})
		}
		return a.table([]string{"START", "END", "FOR", "WHY"}, rows)
	})
}

// holdFlags are the two ways to name a range.
type holdFlags struct{ prefix, keys *string }

func newHoldFlags(a *app, cmd *cobra.Command) holdFlags {
	f := cmd.Flags()
	f.StringVarP(&a.encoding, "encoding", "e", "text", "form of the keys: text, hex or escaped")
	return holdFlags{
		prefix: f.String("prefix", "", "the keys that begin with this"),
		keys: f.String("range", "",
			"the keys from START to before END, as START..END; without END all that follow"),
	}
}

// bounds are the range as regions have it: in clusters of transactions they begin at encoded keys.
func (h holdFlags) bounds(a *app, cmd *cobra.Command) (start, end []byte, err error) {
	from, to, ranged := strings.Cut(*h.keys, "..")
	switch {
	case (*h.prefix == "") == (*h.keys == ""):
		return nil, nil, usagef("give either --prefix or --range")
	case *h.prefix != "":
		start, err = decode(a.encoding, *h.prefix)
		end = prefixEnd(start)
	case !ranged:
		return nil, nil, usagef("--range: %q is not START..END", *h.keys)
	default:
		if start, err = decode(a.encoding, from); err == nil {
			end, err = decode(a.encoding, to)
		}
	}
	if err != nil {
		return nil, nil, err
	}
	err = a.withPlacement(cmd, func(ctx context.Context, p *placement.Client) error {
		cfg, err := p.GetClusterConfig(ctx)
		if err == nil && cfg.GetMode() == string(clustermode.Txn) {
			if len(start) > 0 {
				start = memcomparable.Encode(start)
			}
			if len(end) > 0 {
				end = memcomparable.Encode(end)
			}
		}
		return err
	})
	return start, end, err
}

func regionHoldCmd(a *app) *cobra.Command {
	cmd := command("hold", "Keep the regions of a range from being merged for a time", nil)
	cmd.Long = `Small regions go into their neighbours by themselves. This keeps those of a range as they are for a time.

  tinyctl region hold --prefix user: --for 24h
  tinyctl region hold --range a..m --for 2h --why import`
	h := newHoldFlags(a, cmd)
	d := cmd.Flags().Duration("for", 24*time.Hour, "for how long")
	why := cmd.Flags().String("why", "", "the reason, for people")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		start, end, err := h.bounds(a, cmd)
		if err != nil {
			return err
		}
		return showHolds(a, cmd, http.MethodPost, "/holds", holdBody(start, end, *d, *why))
	}
	return cmd
}

func holdBody(start, end []byte, d time.Duration, why string) map[string]any {
	return map[string]any{
		"start": hex.EncodeToString(start), "end": hex.EncodeToString(end), "for": d.String(),
		"why": why,
	}
}

func regionReleaseCmd(a *app) *cobra.Command {
	cmd := command("release", "Let the regions of a range that was held be merged again", nil)
	h := newHoldFlags(a, cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		start, end, err := h.bounds(a, cmd)
		if err != nil {
			return err
		}
		path := "/holds?start=" + hex.EncodeToString(start) + "&end=" + hex.EncodeToString(end)
		return showHolds(a, cmd, http.MethodDelete, path, nil)
	}
	return cmd
}

func (a *app) regionShow(cmd *cobra.Command, argv []string) error {
	n, err := number(argv[0], "region")
	if err != nil {
		return err
	}
	var r regionInfo
	return a.show(cmd, http.MethodGet, "/regions/"+id(n), nil, &r, func() error {
		rows := [][]string{
			{"keys", fmt.Sprintf("%s to %s", shownKey(r.Start, "-inf"), shownKey(r.End, "+inf"))},
			{
				"epoch",
				fmt.Sprintf("version %d, conf version %d, term %d", r.Version, r.ConfVer, r.Term),
			},
			{"size", fmt.Sprintf("%s, %s keys", mib(r.SizeMiB), humanize.Comma(r.Keys))},
			{
				"traffic",
				fmt.Sprintf("%s written, %s read", humanize.IBytes(r.Written),
					humanize.IBytes(r.Read)),
			},
		}
		for _, p := range r.Peers {
			rows = append(rows,
				[]string{"peer " + id(p.ID), "store " + id(p.Store) + marks(map[string]bool{
					"leader": p.Leader, "learner": p.Learner, "pending": p.Pending, "down": p.Down,
				})})
		}
		if len(r.Defects) > 0 {
			rows = append(rows, []string{"defects", strings.Join(r.Defects, ", ")})
		}
		state := "confirmed by its leader"
		if !r.Confirmed {
			state = "not yet confirmed by its leader"
		}
		return a.table([]string{"REGION " + id(r.ID), state}, rows)
	})
}

// marks lists what is true, each after a comma.
func marks(is map[string]bool) string {
	out := ""
	for _, name := range []string{"leader", "learner", "pending", "down"} {
		if is[name] {
			out += ", " + name
		}
	}
	return out
}

func (a *app) regionCheckCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "check [DEFECT]", Short: "List regions with a defect: " + strings.Join(defects, ", "),
		Args: args(cobra.MaximumNArgs(1)),
	}
	limit := cmd.Flags().IntP("limit", "n", 100, "at most so many regions")
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		if len(argv) == 0 {
			return a.countDefects(cmd)
		}
		if !slices.Contains(defects, argv[0]) {
			return usagef("%q is none of %s", argv[0], strings.Join(defects, ", "))
		}
		var out struct {
			Regions []regionInfo `json:"regions"`
			Cursor  string       `json:"cursor"`
		}
		return a.show(cmd, http.MethodGet,
			fmt.Sprintf("/regions?check=%s&limit=%d", argv[0], *limit), nil, &out, func() error {
				var rows [][]string
				for _, r := range out.Regions {
					var stores []string
					for _, p := range r.Peers {
						store := id(p.Store)
						if p.Leader {
							store += "*"
						}
						stores = append(stores, store)
					}
					rows = append(rows, []string{
						id(r.ID), shownKey(r.Start, "-inf"), shownKey(r.End, "+inf"),
						mib(r.SizeMiB),
						strings.Join(stores, " "), strings.Join(r.Defects, " "),
					})
				}
				return a.table([]string{
					"REGION", "START", "END", "SIZE", "STORES (*LEADER)", "DEFECTS",
				}, rows)
			})
	}
	return cmd
}

// countDefects says how many regions have which defect.
func (a *app) countDefects(cmd *cobra.Command) error {
	var out struct {
		Placement struct {
			Regions    int `json:"regions"`
			Missing    int `json:"missing_replicas"`
			Extra      int `json:"extra_replicas"`
			Down       int `json:"down_replicas"`
			Pending    int `json:"pending_replicas"`
			Leaderless int `json:"leaderless"`
			Offline    int `json:"on_offline_stores"`
			Empty      int `json:"empty"`
		} `json:"placement"`
	}
	return a.show(cmd, http.MethodGet, "/cluster", nil, &out, func() error {
		p := out.Placement
		var rows [][]string
		for i, n := range []int{
			p.Missing, p.Extra, p.Down, p.Pending, p.Offline, p.Leaderless, p.Empty,
		} {
			rows = append(rows, []string{defects[i], fmt.Sprint(n)})
		}
		return a.table([]string{"DEFECT", fmt.Sprintf("REGIONS OF %d", p.Regions)}, rows)
	})
}

func (a *app) regionSplitCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "split ID [KEY...]", Short: "Split a region at keys, or where its leader thinks best",
		Args: args(cobra.MinimumNArgs(1)),
	}
	cmd.Flags().StringVarP(&a.encoding, "encoding", "e", "text",
		"form of the keys: text, hex or escaped")
	wait := cmd.Flags().Bool("wait", false,
		"wait until the region is split and all parts have leaders")
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		n, err := number(argv[0], "region")
		if err != nil {
			return err
		}
		keys := []string{}
		for _, arg := range argv[1:] {
			key, err := decode(a.encoding, arg)
			if err != nil {
				return err
			}
			keys = append(keys, hex.EncodeToString(key))
		}
		return a.operate(cmd, n, "split", map[string]any{"keys": keys}, *wait)
	}
	return cmd
}

// regionMoveCmd is an action on one region whose further arguments are stores, or a region, the
// fields of the request.
func (a *app) regionMoveCmd(use, short string, fields ...string) *cobra.Command {
	action, _, _ := strings.Cut(use, " ")
	cmd := command(use, short, nil)
	wait := cmd.Flags().Bool("wait", false, "wait until it is done")
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		n, err := number(argv[0], "region")
		if err != nil {
			return err
		}
		body := map[string]uint64{}
		for i, field := range fields {
			what := "store"
			if field == "into" {
				what = "region"
			}
			if body[field], err = number(argv[i+1], what); err != nil {
				return err
			}
		}
		return a.operate(cmd, n, action, body, *wait)
	}
	return cmd
}

func (a *app) regionScatterCmd() *cobra.Command {
	cmd := command("scatter ID", "Spread a region away from those scattered before it", nil)
	wait := cmd.Flags().Bool("wait", false, "wait until it is done")
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		n, err := number(argv[0], "region")
		if err != nil {
			return err
		}
		return a.operate(cmd, n, "scatter", nil, *wait)
	}
	return cmd
}

// keyspaceCmd are the commands on ranges of keys.
func keyspaceCmd(a *app) *cobra.Command {
	return group("keyspace", "Prepare ranges of keys", keyspaceSplitCmd(a))
}

// keyspaceSplitCmd cuts a range before it is written to.
func keyspaceSplitCmd(a *app) *cobra.Command {
	cmd := command("split",
		"Cut a range of keys into regions and spread them, before it is written to", nil)
	cmd.Long = `Keys that are written into an empty range all go to one region, until it has been split often enough. This cuts
the range of a prefix at once, and spreads the regions over the stores.

  tinyctl keyspace split --prefix user: --into 64 --like uuid
  tinyctl keyspace split --prefix user: --into 64 --like sample.txt   # a key in each line

Repeated, it goes on where it was. Small regions may be merged into their neighbours by themselves; those that this makes are
kept from it for --hold, a day if nothing else is said.`
	f := cmd.Flags()
	prefix := f.String("prefix", "", "what the keys begin with")
	into := f.Int("into", 0, "number of regions")
	like := f.String("like", "bytes",
		"what follows the prefix: "+strings.Join(keyspace.Shapes, ", ")+
			", or a file with a sample of keys, one in each line")
	f.StringVarP(&a.encoding, "encoding", "e", "text",
		"form of the prefix and of the sample: text, hex or escaped")
	hold := f.Duration("hold", 24*time.Hour,
		"for how long the regions are not merged again; 0 is not at all")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		borders, err := bordersOf(a, *prefix, *into, *like)
		if err != nil {
			return err
		}
		return keyspaceSplit(a, cmd, borders, *hold)
	}
	return cmd
}

func bordersOf(a *app, prefix string, into int, like string) ([][]byte, error) {
	p, err := decode(a.encoding, prefix)
	if err != nil {
		return nil, err
	}
	var out [][]byte
	if slices.Contains(keyspace.Shapes, like) {
		out, err = keyspace.Borders(p, into, like)
	} else {
		data, fileErr := os.ReadFile(like)
		if fileErr != nil {
			return nil,
				usagef("--like: not one of %s, and no file that can be read: %v",
					strings.Join(keyspace.Shapes, ", "), fileErr)
		}
		var sample [][]byte
		for line := range strings.Lines(string(data)) {
			key, err := decode(a.encoding, strings.TrimRight(line, "\r\n"))
			if err != nil {
				return nil, err
			}
			sample = append(sample, key)
		}
		out, err = keyspace.Quantiles(p, into, sample)
	}
	if err != nil {
		return nil, usagef("%v", err)
	}
	if len(out) > 1 && len(out[0]) == 0 {
		out = out[1:] // the first region of all begins there
	}
	return out, nil
}

// holdBorders keeps the regions that begin at borders from being merged.
func holdBorders(ctx context.Context, a *app, borders [][]byte, d time.Duration) error {
	if d == 0 || len(borders) == 0 {
		return nil
	}
	// the region that begins at the last border has a key below this
	end := append(slices.Clone(borders[len(borders)-1]), 0)
	if _, err := a.ask(ctx, http.MethodPost, "/holds",
		holdBody(borders[0], end, d, "keyspace split"), nil); err != nil {
		return fmt.Errorf("hold the range: %w", err)
	}
	return nil
}

func keyspaceSplit(a *app, cmd *cobra.Command, borders [][]byte, hold time.Duration) error {
	var regions []keyspace.Region
	err := a.withPlacement(cmd, func(ctx context.Context, p *placement.Client) error {
		cfg, err := p.GetClusterConfig(ctx)
		if err != nil {
			return err
		}
		if cfg.GetMode() == string(clustermode.Txn) { // its regions begin at encoded keys
			for i, b := range borders {
				borders[i] = memcomparable.Encode(b)
			}
		}
		if err := holdBorders(ctx, a, borders, hold); err != nil {
			return err
		}
		bar := a.barOf(int64(len(borders)), "regions", false, false)
		defer func() { _ = bar.Close() }()
		regions, err = keyspace.Split(ctx, keyspaceService{a}, borders, func(n int) {
			_ = bar.Set(n)
		})
		if errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("not done within %s (--timeout); the same command goes on: %w",
				a.timeout, err)
		}
		return err
	})
	if err != nil {
		return err
	}
	leaders := map[uint64]int{}
	for _, r := range regions {
		leaders[r.Leader]++
	}
	if a.output == "json" {
		return a.json(map[string]any{"regions": len(regions), "leaders": leaders})
	}
	rows := [][]string{}
	for _, store := range slices.Sorted(maps.Keys(leaders)) {
		rows = append(rows, []string{id(store), fmt.Sprint(leaders[store])})
	}
	fmt.Fprintf(a.stdout, "%d regions begin at a border\n", len(regions))
	return a.table([]string{"STORE", "LEADERS"}, rows)
}

// keyspaceService is the placement service's API.
type keyspaceService struct{ a *app }

// Regions implements keyspace.Service.
func (s keyspaceService) Regions(
	ctx context.Context, start, end []byte,
) (out []keyspace.Region, err error) {
	for from := hex.EncodeToString(start); ; {
		var page struct {
			Cursor  string       `json:"cursor"`
			Regions []regionInfo `json:"regions"`
		}
		if _, err := s.a.ask(ctx, http.MethodGet, "/regions?limit=1000&start="+from, nil,
			&page); err != nil {
			return nil, err
		}
		for _, r := range page.Regions {
			k := keyspace.Region{ID: r.ID, Confirmed: r.Confirmed}
			if k.Start, err = hex.DecodeString(r.Start); err != nil {
				return nil, err
			}
			for _, p := range r.Peers {
				if p.Leader {
					k.Leader = p.Store
				}
			}
			if bytes.Compare(k.Start, end) > 0 {
				return out, nil
			}
			out = append(out, k)
		}
		if from = page.Cursor; from == "" {
			return out, nil
		}
	}
}

// Split implements keyspace.Service.
func (s keyspaceService) Split(ctx context.Context, region uint64, keys [][]byte) error {
	text := make([]string, len(keys))
	for i, k := range keys {
		text[i] = hex.EncodeToString(k)
	}
	_, err := s.a.ask(ctx, http.MethodPost, "/regions/"+id(region)+"/split",
		map[string]any{"keys": text}, nil)
	return err
}

// Scatter implements keyspace.Service.
func (s keyspaceService) Scatter(ctx context.Context, region uint64) error {
	_, err := s.a.ask(ctx, http.MethodPost, "/regions/"+id(region)+"/scatter", nil, nil)
	return err
}

// Operators implements keyspace.Service.
func (s keyspaceService) Operators(ctx context.Context) (map[uint64]bool, error) {
	var running struct {
		Operators []operatorInfo `json:"operators"`
	}
	if _, err := s.a.ask(ctx, http.MethodGet, "/operators", nil, &running); err != nil {
		return nil, err
	}
	out := map[uint64]bool{}
	for _, op := range running.Operators {
		out[op.Region] = true
	}
	return out, nil
}
