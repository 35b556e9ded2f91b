package ctl

import (
	"fmt"
	"math"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tinykv/tinykv/kv/client/txn"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

type barrierJSON struct {
	ID string    `json:"id"`
	TS uint64    `json:"ts"`
	At time.Time `json:"at"`
	// TTL is in seconds; -1 is for ever.
	TTL int64 `json:"ttl_seconds"`
}

type gcJSON struct {
	TxnSafePoint uint64        `json:"txn_safe_point"`
	TxnAt        time.Time     `json:"txn_at"`
	GCSafePoint  uint64        `json:"gc_safe_point"`
	GCAt         time.Time     `json:"gc_at"`
	Barriers     []barrierJSON `json:"barriers"`
	// ByClient: a client of TiKV's protocol has raised a safe point within the last day; so the stores do not.
	ByClient  bool  `json:"by_client"`
	ClientAgo int64 `json:"client_ago_ms,omitempty"`
	// Locks and OldestLock are of the whole cluster.
	Locks      int       `json:"locks"`
	OldestLock *lockJSON `json:"oldest_lock,omitempty"`
}

func (a *app) gcCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "gc", Short: "Look at the collection of garbage of a cluster in mode txn"}
	status := &cobra.Command{
		Use: "status", Short: "Print the safe points, what holds them back, and the oldest lock", Args: args(cobra.NoArgs),
		Long: `Transactions that began by the safe point of transactions are refused. Up to the safe point of garbage old versions are
removed. A barrier holds both back until it expires. Stores raise the safe points themselves (options gc.life-time and
gc.interval of a store), unless a client of TiKV's protocol has done so within the last 24 hours.`,
	}
	status.RunE = func(cmd *cobra.Command, _ []string) error {
		a.encoding = "text"
		var out *gcJSON
		kv, err := a.open(cmd.Context())
		if err != nil {
			return err
		}
		defer kv.Close()
		c := txn.New(kv, kv.Placement())
		defer c.Close()
		st, err := kv.Placement().GetGCState(cmd.Context())
		if err != nil {
			return err
		}
		now, err := c.Timestamp(cmd.Context())
		if err != nil {
			return err
		}
		out = gcState(st)
		err = c.Locks(cmd.Context(), now, nil, nil, func(l *kvrpcpb.LockInfo) bool {
			out.Locks++
			if out.OldestLock == nil || l.LockVersion < out.OldestLock.StartTS {
				row := a.lockRow(l, now)
				out.OldestLock = &row
			}
			return true
		})
		if err != nil {
			return err
		}
		return a.showGC(out)
	}
	cmd.AddCommand(status)
	return cmd
}

func gcState(st *schedulerpb.GetGCStateResponse) *gcJSON {
	out := &gcJSON{
		TxnSafePoint: st.TxnSafePoint, TxnAt: beganAt(st.TxnSafePoint), GCSafePoint: st.GcSafePoint, GCAt: beganAt(st.GcSafePoint),
		Barriers: []barrierJSON{},
	}
	for _, b := range st.Barriers {
		row := barrierJSON{ID: b.Id, TS: b.Ts, At: beganAt(b.Ts), TTL: b.TtlSeconds}
		if b.TtlSeconds == math.MaxInt64 {
			row.TTL = -1
		}
		out.Barriers = append(out.Barriers, row)
	}
	if st.ByClient {
		out.ClientAgo = int64(st.ClientAgoMs)
		out.ByClient = out.ClientAgo < (24 * time.Hour).Milliseconds()
	}
	return out
}

func (a *app) showGC(g *gcJSON) error {
	if a.output == "json" {
		return a.json(g)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	point := func(name string, ts uint64, at time.Time) {
		if ts == 0 {
			fmt.Fprintf(w, "%s\tnone yet\n", name)
			return
		}
		fmt.Fprintf(w, "%s\t%s\t%d\n", name, at.Format(time.RFC3339), ts)
	}
	point("transactions after", g.TxnSafePoint, g.TxnAt)
	point("versions kept since", g.GCSafePoint, g.GCAt)
	by := "the stores"
	if g.ByClient {
		by = "a client, " + (time.Duration(g.ClientAgo) * time.Millisecond).Round(time.Second).String() + " ago"
	}
	fmt.Fprintf(w, "raised by\t%s\n", by)
	for _, b := range g.Barriers {
		left := "for ever"
		if b.TTL >= 0 {
			left = (time.Duration(b.TTL) * time.Second).String() + " left"
		}
		fmt.Fprintf(w, "barrier %s\t%s\t%s\n", b.ID, b.At.Format(time.RFC3339), left)
	}
	fmt.Fprintf(w, "locks\t%d\n", g.Locks)
	if l := g.OldestLock; l != nil {
		fmt.Fprintf(w, "oldest lock\t%s\tkey %s, transaction %d\n", l.Begun.Format(time.RFC3339), l.Key, l.StartTS)
	}
	return w.Flush()
}
