package ctl

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/tinykv/tinykv/kv/client"
	"github.com/tinykv/tinykv/pkg/security"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	placement "github.com/tinykv/tinykv/scheduler/client"
)

// compareRow is what came of comparing the replicas of one region.
type compareRow struct {
	Region   uint64            `json:"region_id"`
	Index    uint64            `json:"index"`
	Verdict  string            `json:"verdict"`
	Replicas []replicaHashJSON `json:"replicas"`
	Error    string            `json:"error,omitempty"`
}

type replicaHashJSON struct {
	Peer     uint64 `json:"peer_id"`
	Store    uint64 `json:"store_id"`
	Hash     string `json:"hash,omitempty"`
	Diverged bool   `json:"diverged,omitempty"`
}

// Verdicts.
const (
	verdictEqual      = "equal"
	verdictDiverged   = "diverged"
	verdictUndecided  = "undecided"
	verdictIncomplete = "incomplete"
	verdictFailed     = "failed"
)

func (a *app) checkCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "check", Short: "Check the cluster's data, or one server"}
	cmd.AddCommand(a.checkConsistencyCmd(), checkServingCmd(a))
	return cmd
}

// checkServingCmd is a health check for containers, whose images hold no other HTTP client.
func checkServingCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "serving URL",
		Short: "Ask one server for a page, such as /health; exit code 1 if it does not answer or answers an error",
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			secure, err := security.ClientTLS(argv, a.tls)
			if err != nil {
				return usagef("%w", err)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), a.timeout)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, argv[0], nil)
			if err != nil || req.URL.Host == "" {
				return usagef("%q is not a URL such as http://127.0.0.1:20180/health", argv[0])
			}
			client := &http.Client{
				Transport: &http.Transport{TLSClientConfig: secure, DisableKeepAlives: true},
			}
			resp, err := client.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("%s answers %s", argv[0], resp.Status)
			}
			if a.output == "json" {
				return a.json(map[string]any{"url": argv[0], "serving": true})
			}
			return nil
		},
	}
}

func (a *app) checkConsistencyCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "consistency",
		Short: "Compare the replicas of regions with each other; exit code 1 if some differ",
		Args:  args(cobra.NoArgs),
		Long: `Each region's leader has all replicas hash their data as of one entry of its log, and compares the hashes.

  equal       all replicas have the same data
  diverged    a replica's data are not those of most replicas; it is not served any more, and gets replaced
  undecided   replicas differ, and none of their data has a majority; nothing is changed (docs/operations.md)
  incomplete  not every replica has answered within --wait; those that have are equal
  failed      the region's leader could not be asked

Exit code 0: all regions are equal; 1: some differ; 3: some could not be compared.`,
	}
	region := cmd.Flags().Uint64("region", 0, "only this region")
	wait := cmd.Flags().Duration("wait", time.Minute,
		"how long to wait for the replicas of one region")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *wait < time.Millisecond {
			return usagef("--wait %v is not positive", *wait)
		}
		c, err := a.open(cmd.Context())
		if err != nil {
			return err
		}
		defer c.Close()
		metas, err := a.regionsToCheck(cmd.Context(), c.Placement(), *region)
		if err != nil {
			return err
		}
		rows := make([]compareRow, 0, len(metas))
		for _, m := range metas {
			rows = append(rows, a.compareRegion(cmd.Context(), c, m, *wait))
			if err := cmd.Context().Err(); err != nil {
				return err
			}
		}
		return a.printComparisons(rows)
	}
	return cmd
}

// regionsToCheck are all regions, or the one.
func (a *app) regionsToCheck(
	ctx context.Context, p *placement.Client, only uint64,
) ([]*metapb.Region, error) {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	if only != 0 {
		r, err := p.GetRegionByID(ctx, only)
		if err != nil {
			return nil, err
		}
		if r == nil {
			return nil, notFoundf("no region %d is known", only)
		}
		return []*metapb.Region{r.Meta}, nil
	}
	rs, err := p.ScanRegions(ctx, nil, nil, 0)
	if err != nil {
		return nil, err
	}
	var out []*metapb.Region
	for _, r := range rs {
		out = append(out, r.Meta)
	}
	return out, nil
}

func (a *app) compareRegion(
	ctx context.Context, c *client.Client, m *metapb.Region, wait time.Duration,
) compareRow {
	ctx, cancel := context.WithTimeout(ctx, wait+a.timeout)
	defer cancel()
	row := compareRow{Region: m.Id, Replicas: []replicaHashJSON{}}
	out, err := c.CheckConsistency(ctx, m.StartKey, wait)
	if err != nil {
		row.Verdict, row.Error = verdictFailed, err.Error()
		return row
	}
	row.Region, row.Index, row.Verdict = out.RegionID, out.Index, verdictEqual
	for _, r := range out.Replicas {
		q := replicaHashJSON{Peer: r.PeerID, Store: r.StoreID, Diverged: r.Diverged}
		if r.Known {
			q.Hash = fmt.Sprintf("%016x", r.Hash)
		} else if row.Verdict == verdictEqual {
			row.Verdict = verdictIncomplete
		}
		if r.Diverged {
			row.Verdict = verdictDiverged
		}
		row.Replicas = append(row.Replicas, q)
	}
	if out.Undecided {
		row.Verdict = verdictUndecided
	}
	return row
}

func (a *app) printComparisons(rows []compareRow) error {
	if err := a.tellComparisons(rows); err != nil {
		return err
	}
	counts := map[string]int{}
	for _, r := range rows {
		counts[r.Verdict]++
	}
	switch {
	case counts[verdictDiverged]+counts[verdictUndecided] > 0:
		return errSilent
	case counts[verdictEqual] < len(rows):
		return &codeError{exitUnknown, errSilent}
	}
	return nil
}

func (a *app) tellComparisons(rows []compareRow) error {
	if a.output == "json" {
		return a.json(rows)
	}
	var out [][]string
	equal := 0
	for _, r := range rows {
		if r.Verdict == verdictEqual {
			equal++
			continue
		}
		text := r.Error
		for _, q := range r.Replicas {
			hash := q.Hash
			if hash == "" {
				hash = "no answer"
			}
			if text != "" {
				text += ", "
			}
			text += fmt.Sprintf("store %d: %s", q.Store, hash)
			if q.Diverged {
				text += " (differs)"
			}
		}
		out = append(out,
			[]string{
				strconv.FormatUint(r.Region, 10), r.Verdict, strconv.FormatUint(r.Index, 10), text,
			})
	}
	fmt.Fprintf(a.stdout, "%d of %d regions have equal replicas.\n", equal, len(rows))
	if len(out) == 0 {
		return nil
	}
	return a.table([]string{"REGION", "VERDICT", "INDEX", "REPLICAS"}, out)
}
