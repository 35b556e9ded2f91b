package ctl

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/tinykv/tinykv/cmd/tinyctl/contract"
	"github.com/tinykv/tinykv/kv/offline"
	"github.com/tinykv/tinykv/kv/raftstore"
	"github.com/tinykv/tinykv/pkg/durable"
	"github.com/tinykv/tinykv/pkg/recovery"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
)

// recoverCmd is for the days when more is lost than the cluster can mend; docs/recovery.md.
func (a *app) recoverCmd() *cobra.Command {
	return group("recover", "When more is lost than the cluster can mend",
		a.recoverSchedulerCmd(), a.recoverRegionsCmd(), a.recoverApplyCmd())
}

func (a *app) recoverSchedulerCmd() *cobra.Command {
	var stores []string
	var out string
	cmd := command("scheduler", "Plan a new placement service for the stores of one that is lost",
		func(cmd *cobra.Command, _ []string) error {
			reports, err := a.collect(cmd.Context(), stores)
			if err != nil {
				return err
			}
			plan, err := recovery.PlanScheduler(reports, time.Now())
			if err != nil {
				return err
			}
			if err := writePlan(out, plan); err != nil {
				return err
			}
			if a.output == "json" {
				return printJSON(a, plan, contract.Base64)
			}
			fmt.Fprintf(a.stdout,
				"cluster %d: %d stores report, ids go on above %d, timestamps after %s\n",
				plan.ClusterID, len(plan.Stores),
				plan.AllocID, time.UnixMilli(plan.TimestampMS).UTC().Format(time.RFC3339))
			if len(plan.Missing) > 0 {
				fmt.Fprintf(a.stdout,
					"stores %s have replicas but did not report: name them too, or start them again afterwards\n", join(plan.Missing))
			}
			fmt.Fprintf(a.stdout,
				"Make sure that no member of the old placement service runs, then start one with an empty data directory at the\n"+
					"address that the stores know:\n  tinyscheduler --data-dir NEW --recover %s\n",
				out)
			return nil
		})
	cmd.Flags().StringSliceVar(&stores, "stores", nil,
		"status addresses of all stores, host:port[,...]")
	cmd.Flags().StringVar(&out, "out", "recover-scheduler.json", "file for the plan")
	_ = cmd.MarkFlagRequired("stores")
	return cmd
}

func (a *app) recoverRegionsCmd() *cobra.Command {
	var stores []string
	var lost []string
	var out string
	var yes, fill bool
	cmd := command("regions", "Plan how regions without a majority go on",
		func(cmd *cobra.Command, _ []string) error {
			gone, err := storeIDs(lost)
			if err != nil {
				return err
			}
			reports, err := a.collect(cmd.Context(), stores)
			if err != nil {
				return err
			}
			plan, err := recovery.PlanRegions(reports, gone)
			if err != nil {
				return err
			}
			if fill {
				if err := a.fillHoles(cmd.Context(), plan, reports); err != nil {
					return err
				}
			}
			if a.output == "json" {
				if err := printJSON(a, plan, contract.Base64); err != nil || !yes {
					return err
				}
			} else {
				a.showPlan(plan, fill)
			}
			if len(plan.Rebirths) == 0 && len(plan.Ends) == 0 && !fill {
				return nil
			}
			if !yes &&
				!a.confirm(
					"Lost stores are removed for ever, and what only they had is lost. Go on?") {
				return errors.New("nothing was done")
			}
			return a.acceptPlan(cmd.Context(), plan, out)
		})
	f := cmd.Flags()
	f.StringSliceVar(&lost, "lost-stores", nil, "ids of the stores that never come back")
	f.StringSliceVar(&stores, "stores", nil,
		"status addresses of all stores that are left, host:port[,...]")
	f.StringVar(&out, "out", "recover-regions.json", "file for the plan")
	f.BoolVar(&fill, "fill-holes", false, "put empty regions where no replica is left")
	f.BoolVar(&yes, "yes", false, "do not ask")
	_ = cmd.MarkFlagRequired("lost-stores")
	_ = cmd.MarkFlagRequired("stores")
	return cmd
}

func (a *app) recoverApplyCmd() *cobra.Command {
	var dir, file string
	cmd := command("apply", "Carry a plan for regions out on the data directory of a stopped store",
		func(*cobra.Command, []string) error {
			data, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			var plan recovery.Regions
			if err := json.Unmarshal(data, &plan); err != nil || plan.ClusterID == 0 {
				return fmt.Errorf("%s is no plan of tinyctl recover regions", file)
			}
			s, err := offline.Open(dir, zap.NewNop())
			if err != nil {
				return err
			}
			done, err := s.Apply(&plan)
			if err = errors.Join(err, s.Close()); err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(map[string]any{
					"store_id": s.Ident.StoreId, "reborn": done.Reborn, "ended": done.Ended,
					"filled": done.Filled,
				})
			}
			_, err = fmt.Fprintf(a.stdout,
				"store %d: %d regions go on here, %d replicas end, %d empty regions begin; start the store again\n",
				s.Ident.StoreId, done.Reborn, done.Ended, done.Filled)
			return err
		})
	cmd.Flags().StringVar(&dir, "data-dir", "", "data directory of a store that does not run")
	cmd.Flags().StringVar(&file, "plan", "recover-regions.json", "file of tinyctl recover regions")
	_ = cmd.MarkFlagRequired("data-dir")
	return cmd
}

func storeIDs(texts []string) ([]uint64, error) {
	var out []uint64
	for _, t := range texts {
		id, err := number(t, "store")
		if err != nil {
			return nil, err
		}
		out = append(out, id)
	}
	return out, nil
}

func join(ids []uint64) string {
	var out []string
	for _, id := range ids {
		out = append(out, strconv.FormatUint(id, 10))
	}
	return strings.Join(out, ", ")
}

// collect asks all stores for what they have. Each must answer: a plan without one of them may lose
// what that one has.
func (a *app) collect(ctx context.Context, addrs []string) ([]recovery.StoreReport, error) {
	scheme, client := "http://", http.DefaultClient
	if a.tls.CA != "" {
		secure, err := a.tls.Config()
		if err != nil {
			return nil, err
		}
		scheme, client = "https://",
			&http.Client{
				Transport: &http.Transport{TLSClientConfig: secure, DisableKeepAlives: true},
			}
	}
	var out []recovery.StoreReport
	for _, addr := range addrs {
		var r recovery.StoreReport
		if err := getJSON(ctx, client, scheme+addr+"/status", &r); err != nil {
			return nil, err
		}
		var peers []raftstore.PeerInfo
		if err := getJSON(ctx, client, scheme+addr+"/regions", &peers); err != nil {
			return nil, err
		}
		for i := range peers {
			r.Replicas = append(r.Replicas, replicaOf(r.StoreID, &peers[i]))
		}
		r.StatusAddress = addr
		out = append(out, r)
	}
	return out, nil
}

func getJSON(ctx context.Context, client *http.Client, url string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("a store does not answer: %w", err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("%s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s: %s", url, resp.Status, strings.TrimSpace(string(data)))
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s is no status address of a store: %w", url, err)
	}
	return nil
}

func replicaOf(store uint64, p *raftstore.PeerInfo) recovery.Replica {
	r := recovery.Replica{
		Region: recovery.Region{
			ID: p.Region.GetId(), Start: p.Region.GetStartKey(), End: p.Region.GetEndKey(),
		},
		StoreID: store, PeerID: p.Peer.GetId(),
		LastTerm: p.LastTerm, LastIndex: p.LastIndex, Applied: p.AppliedIndex,
		Installing: p.Installing,
	}
	r.Region.Version, r.Region.ConfVer = p.Region.GetRegionEpoch().GetVersion(),
		p.Region.GetRegionEpoch().GetConfVer()
	for _, q := range p.Region.GetPeers() {
		r.Region.Peers = append(r.Region.Peers,
			recovery.Peer{ID: q.Id, StoreID: q.StoreId, Learner: q.Role == metapb.PeerRole_Learner})
	}
	return r
}

func (a *app) fillHoles(
	ctx context.Context, plan *recovery.Regions, reports []recovery.StoreReport,
) error {
	if len(plan.Holes) == 0 {
		return nil
	}
	p, err := a.placement(ctx)
	if err != nil {
		return err
	}
	defer p.Close()
	var left []uint64
	for _, r := range reports {
		left = append(left, r.StoreID)
	}
	slices.Sort(left)
	return plan.Fill(left, func() (uint64, error) { return p.AllocID(ctx) })
}

func (a *app) showPlan(plan *recovery.Regions, fill bool) {
	fmt.Fprintf(a.stdout, "%d regions have a majority without stores %s and mend themselves.\n",
		plan.Healthy, join(plan.Lost))
	if len(plan.Rebirths) > 0 {
		fmt.Fprintf(a.stdout,
			"%d regions have none. Each goes on as its newest replica; writes that only the lost stores had are lost:\n", len(plan.Rebirths))
		var rows [][]string
		for _, r := range plan.Rebirths {
			rows = append(rows, []string{
				strconv.FormatUint(r.Was.ID, 10), keyRange(r.Becomes.Start, r.Becomes.End),
				fmt.Sprint("store ", r.StoreID),
				fmt.Sprintf("%d in term %d", r.LastIndex, r.LastTerm), join(r.Lost),
			})
		}
		_ = a.table([]string{
			"REGION", "RANGE", "GOES ON AT", "RAFT LOG ENDS AT", "VOTERS LOST ON STORES",
		}, rows)
	}
	if len(plan.Ends) > 0 {
		fmt.Fprintf(a.stdout, "%d older replicas end.\n", len(plan.Ends))
	}
	for _, h := range plan.Holes {
		what := "no replica is left; it stays without a region unless --fill-holes is given"
		if fill {
			what = "no replica is left; an empty region takes its place"
		}
		fmt.Fprintf(a.stdout, "%s: %s\n", keyRange(h.Start, h.End), what)
	}
}

// keyRange is [start, end) in hexadecimal.
func keyRange(start, end []byte) string {
	from, to := "-inf", "+inf"
	if len(start) > 0 {
		from = fmt.Sprintf("%x", start)
	}
	if len(end) > 0 {
		to = fmt.Sprintf("%x", end)
	}
	return from + " to " + to
}

func (a *app) confirm(question string) bool {
	fmt.Fprintf(a.stdout, "%s Type yes: ", question)
	line, _ := bufio.NewReader(a.stdin).ReadString('\n')
	return strings.TrimSpace(line) == "yes"
}

// acceptPlan fences the lost stores, then writes the plan and makes the placement service forget
// what it knows of the regions: their next leaders tell it anew.
func (a *app) acceptPlan(ctx context.Context, plan *recovery.Regions, out string) error {
	for _, id := range plan.Lost {
		path := fmt.Sprintf("/stores/%d", id)
		var st struct {
			State string `json:"state"`
		}
		if _, err := a.ask(ctx, http.MethodGet, path, nil, &st); err != nil {
			return fmt.Errorf("lost store %d: %w", id, err)
		}
		if strings.EqualFold(st.State, "tombstone") {
			continue
		}
		if _, err := a.ask(ctx, http.MethodPost, path+"/bury", map[string]any{"force": true},
			nil); err != nil {
			return fmt.Errorf("remove lost store %d for ever: %w", id, err)
		}
	}
	if err := writePlan(out, plan); err != nil {
		return err
	}
	for _, r := range plan.Rebirths {
		if _, err := a.ask(ctx, http.MethodDelete, fmt.Sprintf("/regions/%d", r.Was.ID), nil,
			nil); err != nil {
			var failure *apiFailure
			if !errors.As(err, &failure) || failure.status != http.StatusNotFound {
				return err
			}
		}
	}
	next := a.stdout
	if a.output == "json" {
		next = a.stderr
	}
	fmt.Fprintf(next,
		"stores %s are removed for ever. Now, on each store that is left: stop it, then\n  tinyctl recover apply --data-dir DIR --plan %s\n"+
			"and start it again. The placement service then makes up the missing replicas.\n",
		join(plan.Lost), out)
	return nil
}

func writePlan(path string, plan any) error {
	data, err := json.MarshalIndent(plan, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(path, append(data, '\n'))
}
