package ctl

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
)

// storeInfo is a store as the API describes it.
type storeInfo struct {
	ID            uint64            `json:"id"`
	Address       string            `json:"address"`
	StatusAddress string            `json:"status_address"`
	Version       string            `json:"version"`
	Labels        map[string]string `json:"labels"`
	State         string            `json:"state"`
	LastHeartbeat *time.Time        `json:"last_heartbeat"`
	StartTime     *time.Time        `json:"start_time"`
	Silent        float64           `json:"silent_seconds"`
	Capacity      uint64            `json:"capacity"`
	Available     uint64            `json:"available"`
	Used          uint64            `json:"used_size"`
	Leaders       int               `json:"leader_count"`
	Regions       int               `json:"region_count"`
	Pending       int               `json:"pending_count"`
	RegionMiB     int64             `json:"region_size_mib"`
	Weight        float64           `json:"weight"`
	LeaderWeight  float64           `json:"leader_weight"`
	EvictLeaders  bool              `json:"evict_leaders"`
	EvictSeconds  float64           `json:"evict_seconds"`
	LimitMoves    int               `json:"limit_moves"`
	LimitMiB      int64             `json:"limit_mib"`
	OwnLimit      bool              `json:"own_limit"`
	LoadMiB       float64           `json:"load_mib"`
	MeanMiB       float64           `json:"mean_load_mib"`
	MovesIn       int               `json:"moves_in"`
	MovesOut      int               `json:"moves_out"`
	InMiB         int64             `json:"in_flight_in_mib"`
	OutMiB        int64             `json:"in_flight_out_mib"`
	Drain         *drainInfo        `json:"drain"`
	Flow          flowInfo          `json:"flow"`
	Slow          *slowInfo         `json:"slow"`
	NotTarget     string            `json:"not_target"`
	NotSource     string            `json:"not_source"`
}

// drainInfo is how far the emptying of a store has come.
type drainInfo struct {
	Done    float64  `json:"done_share"`
	Regions int      `json:"regions_left"`
	MiB     int64    `json:"size_left_mib"`
	Rate    float64  `json:"mib_per_second"`
	ETA     *float64 `json:"eta_seconds"`
	Waiting map[string]struct {
		Count   int      `json:"count"`
		Regions []uint64 `json:"regions"`
	} `json:"waiting"`
}

func (d *drainInfo) String() string {
	text := fmt.Sprintf("%.0f %% done, %d regions with %s left, %.1f MiB/s", 100*d.Done, d.Regions,
		mib(d.MiB), d.Rate)
	if d.ETA != nil {
		text += ", about " + seconds(*d.ETA)
	}
	return text
}

// waits says for what regions wait, the most frequent first.
func (d *drainInfo) waits() []string {
	var out []string
	reasons := slices.SortedFunc(maps.Keys(d.Waiting), func(x, y string) int {
		return cmp.Or(cmp.Compare(d.Waiting[y].Count, d.Waiting[x].Count), cmp.Compare(x, y))
	})
	for _, why := range reasons {
		w := d.Waiting[why]
		some := strings.Trim(fmt.Sprint(w.Regions), "[]")
		out = append(out, fmt.Sprintf("%d wait (%s), as region %s", w.Count, why, some))
	}
	return out
}

// storeOfflineCmd empties a store, and waits for that if it is asked to.
func (a *app) storeOfflineCmd() *cobra.Command {
	cmd := command("offline ID", "Empty a store, then retire it for good; up cancels", nil)
	wait := cmd.Flags().Bool("wait", false, "until it is empty and retired")
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		if !*wait {
			return a.changeStore(cmd, argv[0], "offline", nil)
		}
		n, err := number(argv[0], "store")
		if err != nil {
			return err
		}
		var st storeInfo
		if _, err := a.ask(cmd.Context(), http.MethodPost, "/stores/"+id(n)+"/offline", nil,
			&st); err != nil {
			return err
		}
		return a.waitOffline(cmd, n)
	}
	return cmd
}

// waitOffline shows the progress until the store is retired: as a bar on a terminal, else a line
// now and then. It goes on if the placement leader changes.
func (a *app) waitOffline(cmd *cobra.Command, n uint64) error {
	ctx := cmd.Context()
	bar := a.barOf(100, fmt.Sprintf("emptying store %d", n), false, false)
	defer func() { _ = bar.Close() }()
	poll := time.NewTicker(500 * time.Millisecond)
	defer poll.Stop()
	for failed, last := 0, ""; ; {
		var st storeInfo
		data, err := a.ask(ctx, http.MethodGet, "/stores/"+id(n), nil, &st)
		switch {
		case err != nil:
			if failed++; failed > 60 {
				return err
			}
		case st.State == "tombstone":
			if a.output == "json" {
				return a.raw(data)
			}
			fmt.Fprintf(a.stdout, "store %d is empty and retired\n", n)
			return nil
		case st.State != "offline" || st.Drain == nil:
			return fmt.Errorf("store %d is %s: somebody has cancelled that", n, st.State)
		default:
			failed = 0
			bar.Describe(fmt.Sprintf("store %d: %s", n, st.Drain))
			_ = bar.Set(int(100 * st.Drain.Done))
			waits := strings.Join(st.Drain.waits(), "; ")
			if waits != "" && waits != last {
				fmt.Fprintln(a.stderr, waits)
			}
			last = waits
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return fmt.Errorf("store %d is still being emptied: %w", n, ctx.Err())
		}
	}
}

// storeCmds are the commands of `store` that go to the placement service's API.
func (a *app) storeCmds() []*cobra.Command {
	action := func(name, short string) *cobra.Command {
		return command(name+" ID", short, func(cmd *cobra.Command, argv []string) error {
			return a.changeStore(cmd, argv[0], name, nil)
		})
	}
	bury := action("bury", "Declare a store that is silent gone for good")
	force := bury.Flags().Bool("force", false, "even if regions still count a replica there")
	bury.RunE = func(cmd *cobra.Command, argv []string) error {
		return a.changeStore(cmd, argv[0], "bury", map[string]any{"force": *force})
	}
	evict := action("evict", "Move all leaders off a store and keep them off")
	length := evict.Flags().Duration("for", 0, "for how long, as 2h; without it until unevict")
	evict.RunE = func(cmd *cobra.Command, argv []string) error {
		if *length < 0 {
			return usagef("--for must be above 0")
		}
		if *length == 0 {
			return a.changeStore(cmd, argv[0], "evict", nil)
		}
		return a.changeStore(cmd, argv[0], "evict?for="+length.String(), nil)
	}
	return []*cobra.Command{
		command("show ID", "Show a store and why balance does not use it",
			func(cmd *cobra.Command, argv []string) error {
				return a.oneStore(cmd, http.MethodGet, argv[0], "", nil)
			}),
		a.storeOfflineCmd(),
		action("up", "Cancel offline"),
		evict,
		action("unevict", "Let a store have leaders again"),
		bury,
		a.storeWeightCmd(),
		a.storeRemoveCmd(), a.storeLimitCmd(), a.storeLabelCmd(),
		storeConfigCmd(a), storeLogLevelCmd(a),
	}
}

func (a *app) storeWeightCmd() *cobra.Command {
	cmd := command("weight ID WEIGHT", "Set a store's share of the data, relative to the others",
		nil)
	leaders := cmd.Flags().Float64("leaders", 0,
		"a share of the leaders of its own; 0 is that of the data")
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		w, err := strconv.ParseFloat(argv[1], 64)
		if err != nil {
			return usagef("%q is not a weight", argv[1])
		}
		body := map[string]any{"weight": w}
		if cmd.Flags().Changed("leaders") {
			body["leader_weight"] = *leaders
		}
		return a.changeStore(cmd, argv[0], "weight", body)
	}
	return cmd
}

func (a *app) changeStore(cmd *cobra.Command, store, action string, body any) error {
	return a.oneStore(cmd, http.MethodPost, store, "/"+action, body)
}

func (a *app) oneStore(cmd *cobra.Command, method, arg, action string, body any) error {
	n, err := number(arg, "store")
	if err != nil {
		return err
	}
	var st storeInfo
	return a.show(cmd, method, "/stores/"+id(n)+action, body, &st, func() error {
		return a.printStore(st)
	})
}

func (a *app) printStore(st storeInfo) error {
	rows := [][]string{
		{"address", st.Address},
		{"labels", labelText(st.Labels)},
		{
			"disk",
			fmt.Sprintf("%s used, %s free of %s", humanize.IBytes(st.Used),
				humanize.IBytes(st.Available), humanize.IBytes(st.Capacity)),
		},
		{
			"regions",
			fmt.Sprintf("%d with %s, %d leaders, %d pending", st.Regions, mib(st.RegionMiB),
				st.Leaders, st.Pending),
		},
		{"load", fmt.Sprintf("%s at weight %g (leaders %g); the mean is %s",
			mib(st.LoadMiB), st.Weight, st.LeaderWeight, mib(st.MeanMiB))},
		{"reads", rates(st.Flow.KeysRead, st.Flow.BytesRead)},
		{"writes", rates(st.Flow.KeysWritten, st.Flow.BytesWritten)},
		{
			"moves",
			fmt.Sprintf("%d in (%s), %d out (%s)", st.MovesIn, mib(st.InMiB), st.MovesOut,
				mib(st.OutMiB)),
		},
		{
			"limit",
			fmt.Sprintf("%d moves and %s each way%s", st.LimitMoves, mib(st.LimitMiB),
				map[bool]string{true: ", its own"}[st.OwnLimit]),
		},
	}
	if st.LastHeartbeat != nil {
		rows = append(rows, []string{"heartbeat", seconds(st.Silent) + " ago"})
	}
	if st.StartTime != nil {
		rows = append(rows, []string{"started", st.StartTime.Local().Format(time.DateTime)})
	}
	if st.EvictLeaders {
		text := "kept off (evict)"
		if st.EvictSeconds > 0 {
			text += ", for another " + seconds(st.EvictSeconds)
		}
		rows = append(rows, []string{"leaders", text})
	}
	if s := st.Slow; s != nil {
		const text = "since %s, syncs take %.0f ms (%.0f ms at others); leaders stay away for another %s"
		since := s.Since.Local().Format(time.DateTime)
		rows = append(rows,
			[]string{
				"slow disk", fmt.Sprintf(text, since, s.SyncMS, s.UsualMS, seconds(s.ForSeconds)),
			})
	}
	if st.Drain != nil {
		rows = append(rows, []string{"offline", st.Drain.String()})
		for _, w := range st.Drain.waits() {
			rows = append(rows, []string{"", w})
		}
	}
	if st.NotTarget != "" {
		rows = append(rows, []string{"no target", "because of " + st.NotTarget})
	}
	if st.NotSource != "" {
		rows = append(rows, []string{"no source", "because of " + st.NotSource})
	}
	return a.table([]string{"STORE " + id(st.ID), strings.TrimSpace(st.State + " " + st.Version)},
		rows)
}

// slowInfo says how slow a store's disk is.
type slowInfo struct {
	Since      time.Time `json:"since"`
	SyncMS     float64   `json:"sync_ms"`
	UsualMS    float64   `json:"usual_ms"`
	ForSeconds float64   `json:"for_seconds"`
}

// flowInfo is a rate, in keys and bytes a second.
type flowInfo struct {
	KeysRead     float64 `json:"keys_read"`
	BytesRead    float64 `json:"bytes_read"`
	KeysWritten  float64 `json:"keys_written"`
	BytesWritten float64 `json:"bytes_written"`
}

func rates(keys, bytes float64) string {
	return fmt.Sprintf("%s keys/s, %s/s", humanize.Comma(int64(keys)),
		humanize.IBytes(uint64(bytes)))
}

func labelText(labels map[string]string) string {
	out := make([]string, 0, len(labels))
	for k, v := range labels {
		out = append(out, k+"="+v)
	}
	sort.Strings(out)
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, " ")
}

func (a *app) storeRemoveCmd() *cobra.Command {
	return command("remove ID", "Drop the record of a tombstone",
		func(cmd *cobra.Command, argv []string) error {
			n, err := number(argv[0], "store")
			if err != nil {
				return err
			}
			return a.show(cmd, http.MethodDelete, "/stores/"+id(n), nil, nil, func() error {
				_, err := fmt.Fprintf(a.stdout, "removed store %d\n", n)
				return err
			})
		})
}

type storesInfo struct {
	Stores []storeInfo `json:"stores"`
}

// storeLimitCmd shows what the stores have in flight beside their budgets, and sets the budget of
// one store or of all that have none of their own.
func (a *app) storeLimitCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "limit [ID]",
		Short: "Show or set what may be in flight to and from stores, or one store",
		Args:  args(cobra.MaximumNArgs(1)),
	}
	moves := cmd.Flags().Int("moves", 0,
		"allow so many moves at once, each way; of one store 0 means as the others")
	size := cmd.Flags().Int64("mib", 0,
		"allow so many MiB in flight, each way; of one store 0 means as the others")
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		set := cmd.Flags().Changed("moves") || cmd.Flags().Changed("mib")
		if len(argv) == 1 && set {
			return a.changeStore(cmd, argv[0], "limit",
				map[string]any{"moves": *moves, "mib": *size})
		}
		if len(argv) == 1 {
			return a.oneStore(cmd, http.MethodGet, argv[0], "", nil)
		}
		change := map[string]any{}
		if cmd.Flags().Changed("moves") {
			change["store-moves-in-flight"] = *moves
		}
		if cmd.Flags().Changed("mib") {
			change["store-bytes-in-flight-mib"] = *size
		}
		if set {
			if _, err := a.ask(cmd.Context(), http.MethodPatch, "/config",
				map[string]any{"schedule": change}, nil); err != nil {
				return err
			}
		}
		var out storesInfo
		return a.show(cmd, http.MethodGet, "/stores", nil, &out, func() error {
			var rows [][]string
			for _, st := range out.Stores {
				use := func(moves int, size int64) string {
					return fmt.Sprintf("%d of %d, %s of %s", moves, st.LimitMoves, mib(size),
						mib(st.LimitMiB))
				}
				rows = append(rows,
					[]string{
						id(st.ID), st.Address, use(st.MovesIn, st.InMiB),
						use(st.MovesOut, st.OutMiB),
					})
			}
			return a.table([]string{"STORE", "ADDRESS", "IN FLIGHT TO IT", "FROM IT"}, rows)
		})
	}
	return cmd
}

// storeLabelCmd shows labels, or sets some over those that a store brings from its configuration.
func (a *app) storeLabelCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "label [ID NAME=VALUE...]",
		Short: "Show the stores' labels, or set some of one store; NAME= takes one away",
	}
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		if len(argv) == 1 {
			return a.oneStore(cmd, http.MethodGet, argv[0], "", nil)
		}
		if len(argv) > 1 {
			labels := map[string]string{}
			for _, l := range argv[1:] {
				name, value, ok := strings.Cut(l, "=")
				if !ok || name == "" {
					return usagef("%q is not NAME=VALUE", l)
				}
				labels[name] = value
			}
			return a.changeStore(cmd, argv[0], "labels", map[string]any{"labels": labels})
		}
		var out storesInfo
		return a.show(cmd, http.MethodGet, "/stores", nil, &out, func() error {
			var rows [][]string
			for _, st := range out.Stores {
				rows = append(rows, []string{id(st.ID), st.Address, labelText(st.Labels)})
			}
			return a.table([]string{"STORE", "ADDRESS", "LABELS"}, rows)
		})
	}
	return cmd
}
