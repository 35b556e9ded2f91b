package ctl

import (
	"context"
	"encoding/hex"
	"fmt"
	"math"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tinykv/tinykv/cmd/tinyctl/contract"
	"github.com/tinykv/tinykv/kv/client/txn"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

// txnCmd has the commands for clusters of transactions. Each is one transaction.
func (a *app) txnCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "txn",
		Short: "Read and write keys of a cluster in mode txn, each command as one transaction",
	}
	cmd.AddCommand(a.txnGetCmd(), a.txnPutCmd(), a.txnDeleteCmd(), a.txnScanCmd())
	for _, c := range cmd.Commands() {
		c.Flags().StringVarP(&a.encoding, "encoding", "e", "text",
			"form of keys and values: text, hex or escaped")
	}
	return cmd
}

// transact runs f in a transaction, again if it meets others.
func (a *app) transact(cmd *cobra.Command, f func(t *txn.Txn) error) error {
	c, err := a.open(cmd.Context())
	if err != nil {
		return err
	}
	defer c.Close()
	t := txn.New(c, c.Placement())
	defer t.Close()
	return t.Run(cmd.Context(), f)
}

// showPairs prints pairs as a table, or as JSON.
func (a *app) showPairs(kvs []txn.KV) error {
	if a.output == "json" {
		out := make([]pairJSON, len(kvs))
		for i, kv := range kvs {
			out[i] = pairJSON{keyJSON: keyOf(kv.Key), valueJSON: valueOf(kv.Value)}
		}
		return a.json(out)
	}
	for _, kv := range kvs {
		fmt.Fprintf(a.stdout, "%s\t%s\n", encode(a.encoding, kv.Key), encode(a.encoding, kv.Value))
	}
	return nil
}

func (a *app) txnGetCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get KEY...",
		Short: "Print those of the keys that exist, as of one moment; exit code 4 if one is missing", Args: args(cobra.MinimumNArgs(1)),
	}
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		keys, err := a.decodeAll(argv)
		if err != nil {
			return err
		}
		var found []txn.KV
		err = a.transact(cmd, func(t *txn.Txn) error {
			values, err := t.BatchGet(cmd.Context(), keys)
			found = nil
			for _, k := range keys {
				if v, ok := values[string(k)]; ok {
					found = append(found, txn.KV{Key: k, Value: v})
				}
			}
			return err
		})
		if err == nil {
			err = a.showPairs(found)
		}
		if err == nil && len(found) < len(keys) {
			err = errNotFound
		}
		return err
	}
	return cmd
}

func (a *app) txnPutCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "put KEY VALUE [KEY VALUE]...", Short: "Set keys, all or none",
		Args: args(cobra.MinimumNArgs(2)),
	}
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		if len(argv)%2 != 0 {
			return usagef("key %s has no value", argv[len(argv)-1])
		}
		words, err := a.decodeAll(argv)
		if err != nil {
			return err
		}
		var keys [][]byte
		for i := 0; i < len(words); i += 2 {
			keys = append(keys, words[i])
		}
		err = a.transact(cmd, func(t *txn.Txn) error {
			for i := 0; i < len(words); i += 2 {
				t.Set(words[i], words[i+1])
			}
			return nil
		})
		if err != nil {
			return err
		}
		return changedKeys(a, keys)
	}
	return cmd
}

func (a *app) txnDeleteCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "delete KEY...", Aliases: []string{"del"}, Short: "Remove keys, all or none",
		Args: args(cobra.MinimumNArgs(1)),
	}
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		keys, err := a.decodeAll(argv)
		if err != nil {
			return err
		}
		err = a.transact(cmd, func(t *txn.Txn) error {
			for _, k := range keys {
				t.Delete(k)
			}
			return nil
		})
		if err != nil {
			return err
		}
		return changedKeys(a, keys)
	}
	return cmd
}

func (a *app) txnScanCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "scan [START [END]]",
		Short: "Print the pairs of [START, END) in order, as of one moment",
		Args:  args(cobra.MaximumNArgs(2)),
	}
	limit := cmd.Flags().IntP("limit", "n", 100, "at most so many pairs; 0 for all")
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		bounds, err := a.decodeAll(append(argv, "", "")[:2])
		if err != nil {
			return err
		}
		if len(bounds[1]) == 0 {
			bounds[1] = nil
		}
		var kvs []txn.KV
		err = a.transact(cmd, func(t *txn.Txn) (err error) {
			kvs, err = t.Scan(cmd.Context(), bounds[0], bounds[1], *limit)
			return err
		})
		if err != nil {
			return err
		}
		return a.showPairs(kvs)
	}
	return cmd
}

// withTxns runs f with a client of transactions.
func (a *app) withTxns(ctx context.Context, f func(c *txn.Client) error) error {
	kv, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer kv.Close()
	c := txn.New(kv, kv.Placement())
	defer c.Close()
	return f(c)
}

type lockJSON struct {
	keyJSON
	Type    string    `json:"type"`
	StartTS uint64    `json:"start_ts"`
	Begun   time.Time `json:"begun"`
	TTL     uint64    `json:"ttl_ms"`
	// Left is how long the lock lives on without another heartbeat; negative once that is over.
	Left        int64   `json:"left_ms"`
	Primary     *string `json:"primary,omitempty"`
	PrimaryHex  string  `json:"primary_hex"`
	MinCommitTS uint64  `json:"min_commit_ts,omitempty"`
	TxnSize     uint64  `json:"txn_size,omitempty"`
	valueJSON
	// key, primary and value are as tables have them.
	key, primary, value string
}

// beganAt is the time that a timestamp has.
func beganAt(ts uint64) time.Time { return time.UnixMilli(int64(ts >> 18)).UTC() }

func (a *app) lockRow(l *kvrpcpb.LockInfo, now uint64) lockJSON {
	return lockJSON{
		keyJSON: keyOf(l.Key), key: encode(a.encoding, l.Key), Type: l.Type, StartTS: l.LockVersion,
		Begun:   beganAt(l.LockVersion),
		TTL:     l.LockTtl,
		Left:    int64(l.LockVersion>>18) + int64(l.LockTtl) - int64(now>>18),
		Primary: contract.Text(l.PrimaryLock), PrimaryHex: hex.EncodeToString(l.PrimaryLock),
		primary: encode(a.encoding, l.PrimaryLock), MinCommitTS: l.MinCommitTs, TxnSize: l.TxnSize,
	}
}

func (a *app) lockCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "lock", Short: "Look at the locks of transactions"}
	list := &cobra.Command{
		Use: "list [START [END]]", Short: "Print the locks on the keys of [START, END) in order",
		Args: args(cobra.MaximumNArgs(2)),
		Long: `Locks come and go with each transaction. One whose time is over is left by a client that has died, and
is removed by the next reader that meets it, or by the stores' own collection of garbage (tinyctl gc status).`,
	}
	limit := list.Flags().IntP("limit", "n", 100, "at most so many locks; 0 for all")
	expired := list.Flags().Bool("expired", false, "only locks whose time is over")
	list.Flags().StringVarP(&a.encoding, "encoding", "e", "text",
		"form of keys: text, hex or escaped")
	list.RunE = func(cmd *cobra.Command, argv []string) error {
		bounds, err := a.decodeAll(append(argv, "", "")[:2])
		if err != nil {
			return err
		}
		rows := []lockJSON{}
		err = a.withTxns(cmd.Context(), func(c *txn.Client) error {
			now, err := c.Timestamp(cmd.Context())
			if err != nil {
				return err
			}
			return c.Locks(cmd.Context(), now, bounds[0], bounds[1],
				func(l *kvrpcpb.LockInfo) bool {
					if row := a.lockRow(l, now); !*expired || row.Left < 0 {
						rows = append(rows, row)
					}
					return *limit <= 0 || len(rows) < *limit
				})
		})
		if err != nil {
			return err
		}
		return a.showLocks(rows)
	}
	cmd.AddCommand(list)
	return cmd
}

func (a *app) showLocks(rows []lockJSON) error {
	if a.output == "json" {
		return a.json(rows)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "KEY\tTYPE\tTXN\tBEGUN\tLEFT\tPRIMARY")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\n", r.key, r.Type, r.StartTS,
			r.Begun.Format(time.RFC3339Nano),
			(time.Duration(r.Left) * time.Millisecond).String(), r.primary)
	}
	return w.Flush()
}

type versionJSON struct {
	Type     string    `json:"type"`
	StartTS  uint64    `json:"start_ts"`
	CommitTS uint64    `json:"commit_ts"`
	At       time.Time `json:"at"`
	valueJSON
	// Overlapped: another transaction was rolled back that had begun at CommitTS.
	Overlapped bool   `json:"overlapped_rollback,omitempty"`
	shown      string // the value, as tables have it
}

type recordsJSON struct {
	keyJSON
	Lock     *lockJSON     `json:"lock,omitempty"`
	Versions []versionJSON `json:"versions"`
	// Orphans are the start timestamps of values that no record has.
	Orphans []uint64 `json:"values_without_record,omitempty"`
}

func (a *app) mvccCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "mvcc KEY", Args: args(cobra.ExactArgs(1)),
		Short: "Print the lock and all versions of a key, newest first; exit code 4 if there is nothing",
	}
	cmd.Flags().StringVarP(&a.encoding, "encoding", "e", "text",
		"form of keys and values: text, hex or escaped")
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		key, err := decode(a.encoding, argv[0])
		if err != nil {
			return err
		}
		var info *kvrpcpb.MvccInfo
		var now uint64
		err = a.withTxns(cmd.Context(), func(c *txn.Client) (err error) {
			if info, err = c.Records(cmd.Context(), key); err == nil {
				now, err = c.Timestamp(cmd.Context())
			}
			return err
		})
		if err != nil {
			return err
		}
		out := a.records(key, info, now)
		if err := a.showRecords(out); err != nil {
			return err
		}
		if out.Lock == nil && len(out.Versions) == 0 && len(out.Orphans) == 0 {
			return errNotFound
		}
		return nil
	}
	return cmd
}

// records joins records with their values.
func (a *app) records(key []byte, info *kvrpcpb.MvccInfo, now uint64) *recordsJSON {
	out := &recordsJSON{keyJSON: keyOf(key), Versions: []versionJSON{}}
	values := map[uint64][]byte{}
	for _, v := range info.Values {
		values[v.StartTs] = v.Value
	}
	take := func(startTS uint64) (value valueJSON, shown string) {
		v, ok := values[startTS]
		if !ok {
			return value, "-"
		}
		delete(values, startTS)
		return valueOf(v), encode(a.encoding, v)
	}
	if info.Lock != nil {
		row := a.lockRow(info.Lock, now)
		if len(info.LockValue) > 0 {
			row.valueJSON, row.value = valueOf(info.LockValue), encode(a.encoding, info.LockValue)
		} else {
			row.valueJSON, row.value = take(info.Lock.LockVersion)
		}
		row.keyJSON = out.keyJSON
		out.Lock = &row
	}
	for _, w := range info.Writes {
		v := versionJSON{
			Type: w.Type, StartTS: w.StartTs, CommitTS: w.CommitTs, At: beganAt(w.CommitTs),
			Overlapped: w.HasOverlappedRollback, shown: "-",
		}
		switch {
		case w.Type == "rollback": // what it has instead of a value is a mark
		case w.HasShortValue:
			v.valueJSON, v.shown = valueOf(w.ShortValue), encode(a.encoding, w.ShortValue)
		default:
			v.valueJSON, v.shown = take(w.StartTs)
		}
		out.Versions = append(out.Versions, v)
	}
	for _, v := range info.Values {
		if _, left := values[v.StartTs]; left {
			out.Orphans = append(out.Orphans, v.StartTs)
		}
	}
	return out
}

func (a *app) showRecords(r *recordsJSON) error {
	if a.output == "json" {
		return a.json(r)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "RECORD\tTXN\tCOMMITTED\tAT\tVALUE")
	if l := r.Lock; l != nil {
		fmt.Fprintf(w, "lock: %s\t%d\t-\t%s\t%s\n", l.Type, l.StartTS,
			l.Begun.Format(time.RFC3339Nano), l.value)
	}
	for _, v := range r.Versions {
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\n", v.Type, v.StartTS, v.CommitTS,
			v.At.Format(time.RFC3339Nano), v.shown)
	}
	for _, ts := range r.Orphans {
		fmt.Fprintf(w, "value without record\t%d\t-\t-\t-\n", ts)
	}
	return w.Flush()
}

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
	// ByClient: a client of TiKV's protocol has raised a safe point within the last day; so the
	// stores do not.
	ByClient  bool  `json:"by_client"`
	ClientAgo int64 `json:"client_ago_ms,omitempty"`
	// Locks and OldestLock are of the whole cluster.
	Locks      int       `json:"locks"`
	OldestLock *lockJSON `json:"oldest_lock,omitempty"`
}

func (a *app) gcCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "gc", Short: "Look at the collection of garbage of a cluster in mode txn",
	}
	status := &cobra.Command{
		Use: "status", Args: args(cobra.NoArgs),
		Short: "Print the safe points, what holds them back, and the oldest lock",
		Long: `Transactions that began by the safe point of transactions are refused. Up to the safe point of garbage,
old versions are removed. A barrier holds both back until it expires. Stores raise the safe points themselves (options
gc.life-time and gc.interval of a store), unless a client of TiKV's protocol has done so within the last 24 hours.`,
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
		TxnSafePoint: st.TxnSafePoint, TxnAt: beganAt(st.TxnSafePoint),
		GCSafePoint: st.GcSafePoint, GCAt: beganAt(st.GcSafePoint),
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
		by = "a client, " +
			(time.Duration(g.ClientAgo) * time.Millisecond).Round(time.Second).String() + " ago"
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
		fmt.Fprintf(w, "oldest lock\t%s\tkey %s, transaction %d\n", l.Begun.Format(time.RFC3339),
			l.key, l.StartTS)
	}
	return w.Flush()
}
