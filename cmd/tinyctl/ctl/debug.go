package ctl

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/tinykv/tinykv/cmd/tinyctl/contract"
	"github.com/tinykv/tinykv/kv/offline"
	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
)

// debugCmd looks into the data directory of a store that does not run.
func (a *app) debugCmd() *cobra.Command {
	var dir string
	with := func(run func(s *offline.Store, argv []string) error) func(
		*cobra.Command, []string,
	) error {
		return func(_ *cobra.Command, argv []string) error {
			s, err := offline.Open(dir, zap.NewNop())
			if err != nil {
				return err
			}
			err = run(s, argv)
			if cerr := s.Close(); err == nil {
				err = cerr
			}
			return err
		}
	}
	var from, to uint64
	entries := command("entries REGION", "Show the raft log of a region",
		with(func(s *offline.Store, argv []string) error {
			return a.debugEntries(s, argv[0], from, to)
		}))
	entries.Flags().Uint64Var(&from, "from", 0, "first index")
	entries.Flags().Uint64Var(&to, "to", 0, "index after the last; 0 for the end")
	var limit int
	keys := command("keys", "Show keys with the sizes and checksums of their values",
		with(func(s *offline.Store, _ []string) error {
			return a.debugKeys(s, limit)
		}))
	keys.Flags().IntVar(&limit, "limit", 100, "how many; 0 for all")
	cmd := group("debug", "Look into the data directory of a store that does not run",
		command("regions", "Show all replicas with their raft positions",
			with(func(s *offline.Store, _ []string) error { return a.debugRegions(s) })),
		entries, keys,
		command("verify", "Read everything and compare it with its checksums",
			with(func(s *offline.Store, _ []string) error { return a.debugVerify(s) })))
	cmd.PersistentFlags().StringVar(&dir, "data-dir", "",
		"data directory of a store that does not run")
	_ = cmd.MarkPersistentFlagRequired("data-dir")
	return cmd
}

func (a *app) debugRegions(s *offline.Store) error {
	replicas, err := s.Replicas()
	if err != nil {
		return err
	}
	if a.output == "json" {
		if replicas == nil {
			replicas = []offline.Replica{}
		}
		return printJSON(a, replicas, contract.Base64)
	}
	fmt.Fprintf(a.stdout, "store %d of cluster %d, started %d times\n", s.Ident.StoreId,
		s.Ident.ClusterId, s.Ident.Incarnation)
	num := func(n uint64) string { return strconv.FormatUint(n, 10) }
	var rows [][]string
	for _, r := range replicas {
		note := r.Damaged + r.LogDamage
		e := r.Region.GetRegionEpoch()
		rows = append(rows, []string{
			num(r.Region.Id), r.Status, keyRange(r.Region.StartKey, r.Region.EndKey),
			fmt.Sprintf("%d:%d", e.GetVersion(), e.GetConfVer()),
			num(r.Peer.GetId()), num(r.Term), num(r.Vote), num(r.Applied), num(r.Commit),
			fmt.Sprintf("%d-%d", r.FirstIndex, r.LastIndex), note,
		})
	}
	return a.table([]string{
		"REGION", "STATE", "RANGE", "EPOCH", "PEER", "TERM", "VOTE", "APPLIED", "COMMIT", "LOG",
		"NOTE",
	}, rows)
}

// entryView is an entry for people.
type entryView struct {
	Index uint64 `json:"index"`
	Term  uint64 `json:"term"`
	Kind  string `json:"kind"`
	Bytes int    `json:"bytes"`
	What  string `json:"what"`
}

func (a *app) debugEntries(s *offline.Store, region string, from, to uint64) error {
	id, err := number(region, "region")
	if err != nil {
		return err
	}
	ents, err := s.Entries(id, from, to)
	if err != nil {
		return err
	}
	views := make([]entryView, 0, len(ents))
	for i := range ents {
		views = append(views, viewEntry(&ents[i]))
	}
	if a.output == "json" {
		return a.json(views)
	}
	var rows [][]string
	for _, v := range views {
		rows = append(rows,
			[]string{
				strconv.FormatUint(v.Index, 10), strconv.FormatUint(v.Term, 10), v.Kind,
				strconv.Itoa(v.Bytes), v.What,
			})
	}
	return a.table([]string{"INDEX", "TERM", "KIND", "BYTES", "WHAT"}, rows)
}

func viewEntry(e *eraftpb.Entry) entryView {
	v := entryView{Index: e.Index, Term: e.Term, Bytes: len(e.Data)}
	if e.EntryType == eraftpb.EntryType_EntryConfChange {
		cc, _, err := message.DecodeConfChange(e.Data)
		v.Kind, v.What = "conf change", fmt.Sprintf("%v peer %d", cc.ChangeType, cc.NodeId)
		if err != nil {
			v.What = err.Error()
		}
		return v
	}
	if len(e.Data) == 0 {
		v.Kind = "empty"
		return v
	}
	cmd, err := message.DecodeEntry(e.Data)
	if err != nil {
		v.Kind, v.What = "damaged", err.Error()
		return v
	}
	if cmd.Admin != nil {
		v.Kind = "admin"
		return v
	}
	if cmd.Conditional != nil {
		v.Kind = "conditional"
		v.What = whatConditional(cmd.Conditional)
		return v
	}
	v.Kind = "write"
	n := 0
	cmd.VisitOps(func(op message.Op) bool {
		kind := "put"
		if op.Delete {
			kind = "delete"
		}
		if n++; n <= 4 {
			v.What += fmt.Sprintf("%s %x (%d) ", kind, op.Key, len(op.Value))
			if op.Life.TTL > 0 {
				v.What += fmt.Sprintf("for %d ms ", op.Life.TTL)
			}
		}
		return true
	})
	if n > 4 {
		v.What += fmt.Sprintf("and %d more", n-4)
	}
	return v
}

func whatConditional(c *raft_cmdpb.Request) string {
	switch {
	case c.CompareAndSwap != nil:
		return fmt.Sprintf("compare and swap %x (%d)", c.CompareAndSwap.Key,
			len(c.CompareAndSwap.Value))
	case c.DeleteRange != nil:
		return fmt.Sprintf("delete from %x to %x", c.DeleteRange.Start, c.DeleteRange.End)
	case c.Expire != nil:
		return fmt.Sprintf("expire %d keys at %d", len(c.Expire.Keys), c.Expire.Now)
	}
	return ""
}

func (a *app) debugKeys(s *offline.Store, limit int) error {
	type row struct {
		CF string `json:"cf"`
		keyJSON
		Bytes int    `json:"value_bytes"`
		Sum   string `json:"value_crc32c"`
	}
	rows := []row{}
	stop := fmt.Errorf("limit")
	err := s.Keys(nil, nil, func(k offline.UserKey) error {
		if limit > 0 && len(rows) == limit {
			return stop
		}
		rows = append(rows,
			row{string(k.CF), keyOf(k.Key), k.Bytes, fmt.Sprintf("%08x", k.Sum)})
		return nil
	})
	if err != nil && err != stop { //nolint:errorlint // it is the very value
		return err
	}
	if a.output == "json" {
		return a.json(rows)
	}
	var out [][]string
	for _, r := range rows {
		out = append(out, []string{r.CF, r.KeyHex, strconv.Itoa(r.Bytes), r.Sum})
	}
	if err == stop { //nolint:errorlint // it is the very value
		defer fmt.Fprintf(a.stderr, "stopped at --limit %d\n", limit)
	}
	return a.table([]string{"FAMILY", "KEY", "BYTES", "CRC-32C"}, out)
}

func (a *app) debugVerify(s *offline.Store) error {
	rep, err := s.Verify()
	if err != nil {
		return err
	}
	if a.output == "json" {
		if rep.Problems == nil {
			rep.Problems = []string{}
		}
		if err := a.json(rep); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(a.stdout, "%d regions, %d raft log entries, %d keys, %d bytes\n", rep.Regions,
			rep.Entries, rep.Keys, rep.Bytes)
		for _, p := range rep.Problems {
			fmt.Fprintln(a.stdout, p)
		}
	}
	if len(rep.Problems) > 0 {
		return errSilent
	}
	return nil
}
