package ctl

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tinykv/tinykv/kv/client/txn"
	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

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
	Key     string    `json:"key,omitempty"`
	Type    string    `json:"type"`
	StartTS uint64    `json:"start_ts"`
	Begun   time.Time `json:"begun"`
	TTL     uint64    `json:"ttl_ms"`
	// Left is how long the lock lives on without another heartbeat; negative once that is over.
	Left        int64  `json:"left_ms"`
	Primary     string `json:"primary"`
	MinCommitTS uint64 `json:"min_commit_ts,omitempty"`
	TxnSize     uint64 `json:"txn_size,omitempty"`
	Value       string `json:"value,omitempty"`
}

// beganAt is the time that a timestamp has.
func beganAt(ts uint64) time.Time { return time.UnixMilli(int64(ts >> 18)).UTC() }

func (a *app) lockRow(l *kvrpcpb.LockInfo, now uint64) lockJSON {
	return lockJSON{
		Key: encode(a.encoding, l.Key), Type: l.Type, StartTS: l.LockVersion, Begun: beganAt(l.LockVersion), TTL: l.LockTtl,
		Left:    int64(l.LockVersion>>18) + int64(l.LockTtl) - int64(now>>18),
		Primary: encode(a.encoding, l.PrimaryLock), MinCommitTS: l.MinCommitTs, TxnSize: l.TxnSize,
	}
}

func (a *app) lockCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "lock", Short: "Look at the locks of transactions"}
	list := &cobra.Command{
		Use: "list [START [END]]", Short: "Print the locks on the keys of [START, END) in order", Args: args(cobra.MaximumNArgs(2)),
		Long: `Locks come and go with each transaction. One whose time is over is left by a client that has died, and is removed by the
next reader that meets it, or by the stores' own collection of garbage (tinyctl gc status).`,
	}
	limit := list.Flags().IntP("limit", "n", 100, "at most so many locks; 0 for all")
	expired := list.Flags().Bool("expired", false, "only locks whose time is over")
	list.Flags().StringVarP(&a.encoding, "encoding", "e", "text", "form of keys: text, hex or escaped")
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
			return c.Locks(cmd.Context(), now, bounds[0], bounds[1], func(l *kvrpcpb.LockInfo) bool {
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
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\n", r.Key, r.Type, r.StartTS, r.Begun.Format(time.RFC3339Nano),
			(time.Duration(r.Left) * time.Millisecond).String(), r.Primary)
	}
	return w.Flush()
}

type versionJSON struct {
	Type     string    `json:"type"`
	StartTS  uint64    `json:"start_ts"`
	CommitTS uint64    `json:"commit_ts"`
	At       time.Time `json:"at"`
	Value    *string   `json:"value,omitempty"`
	// Overlapped: another transaction was rolled back that had begun at CommitTS.
	Overlapped bool `json:"overlapped_rollback,omitempty"`
}

type recordsJSON struct {
	Key      string        `json:"key"`
	Lock     *lockJSON     `json:"lock,omitempty"`
	Versions []versionJSON `json:"versions"`
	// Orphans are the start timestamps of values that no record has.
	Orphans []uint64 `json:"values_without_record,omitempty"`
}

func (a *app) mvccCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "mvcc KEY", Short: "Print the lock and all versions of a key, newest first; exit code 1 if there is nothing", Args: args(cobra.ExactArgs(1)),
	}
	cmd.Flags().StringVarP(&a.encoding, "encoding", "e", "text", "form of keys and values: text, hex or escaped")
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
			return errSilent
		}
		return nil
	}
	return cmd
}

// records joins records with their values.
func (a *app) records(key []byte, info *kvrpcpb.MvccInfo, now uint64) *recordsJSON {
	out := &recordsJSON{Key: encode(a.encoding, key), Versions: []versionJSON{}}
	values := map[uint64][]byte{}
	for _, v := range info.Values {
		values[v.StartTs] = v.Value
	}
	take := func(startTS uint64) *string {
		v, ok := values[startTS]
		if !ok {
			return nil
		}
		delete(values, startTS)
		text := encode(a.encoding, v)
		return &text
	}
	if info.Lock != nil {
		row := a.lockRow(info.Lock, now)
		if row.Value = encode(a.encoding, info.LockValue); row.Value == "" {
			if v := take(info.Lock.LockVersion); v != nil {
				row.Value = *v
			}
		}
		out.Lock = &row
	}
	for _, w := range info.Writes {
		v := versionJSON{
			Type: w.Type, StartTS: w.StartTs, CommitTS: w.CommitTs, At: beganAt(w.CommitTs), Overlapped: w.HasOverlappedRollback,
		}
		switch {
		case w.Type == "rollback": // what it has instead of a value is a mark
		case w.HasShortValue:
			text := encode(a.encoding, w.ShortValue)
			v.Value = &text
		default:
			v.Value = take(w.StartTs)
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
		fmt.Fprintf(w, "lock: %s\t%d\t-\t%s\t%s\n", l.Type, l.StartTS, l.Begun.Format(time.RFC3339Nano), l.Value)
	}
	for _, v := range r.Versions {
		value := "-"
		if v.Value != nil {
			value = *v.Value
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\n", v.Type, v.StartTS, v.CommitTS, v.At.Format(time.RFC3339Nano), value)
	}
	for _, ts := range r.Orphans {
		fmt.Fprintf(w, "value without record\t%d\t-\t-\t-\n", ts)
	}
	return w.Flush()
}
