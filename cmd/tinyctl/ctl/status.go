package ctl

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/tinykv/tinykv/scheduler/server/health"
)

// reachTimeout bounds each try to reach a process.
const reachTimeout = 2 * time.Second

// clusterInfo is what `status` shows: the report of the placement leader, and what is not reached
// from here. Nothing else is judged here.
type clusterInfo struct {
	ClusterID string `json:"cluster_id"`
	// Healthy is false also while that is not known; Report.Health tells.
	Healthy bool `json:"healthy"`
	health.Report
	Summary string `json:"summary"`
	Leader  string `json:"leader"`
	// Mode is raw or txn; empty before the first store came.
	Mode string `json:"mode,omitempty"`
	// Unreachable are the processes that this machine does not reach.
	Unreachable []string   `json:"unreachable"`
	Stores      []storeRow `json:"stores"`
}

func (a *app) statusCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the cluster's health; exit code 0 healthy, 1 not, 3 cannot tell",
		Args:  args(cobra.NoArgs),
		Long: "Shows what the placement service says of the cluster's health, and which of its processes are not reached from here.\n" +
			"Exit codes: 0 healthy, 1 not healthy or not reached, 2 wrong usage, 3 cannot tell.",
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), a.timeout)
		defer cancel()
		info, err := a.look(ctx)
		if err != nil {
			return statusError(err)
		}
		if a.output == "json" {
			err = a.json(info)
		} else {
			err = a.printStatus(info)
		}
		switch {
		case err != nil:
			return err
		case len(info.Unreachable) > 0, info.Health == health.Degraded,
			info.Health == health.Critical:
			return errSilent
		case info.Health != health.OK:
			return &codeError{exitUnknown, errSilent}
		}
		return nil
	}
	return cmd
}

// statusError gives a failure to learn the state its exit code: a storage that refuses writes is
// certainly not healthy.
func statusError(err error) error {
	var api *apiFailure
	var usage *usageError
	if errors.As(err, &usage) || errors.As(err, &api) && api.Code == "no-space" {
		return err
	}
	return &codeError{exitUnknown, fmt.Errorf("cannot tell: %w", err)}
}

// look asks the placement service, then tries to reach everything that it does not report as
// silent.
func (a *app) look(ctx context.Context) (*clusterInfo, error) {
	info := &clusterInfo{Unreachable: []string{}}
	if _, err := a.ask(ctx, http.MethodGet, "/health", nil, info); err != nil {
		return nil, err
	}
	if info.Summary == "" { // its "ok" is about something else
		return nil,
			errors.New("the placement service is of an older version and makes no health report")
	}
	info.Healthy = info.Health == health.OK
	var members membersInfo
	if _, err := a.ask(ctx, http.MethodGet, "/members", nil, &members); err != nil {
		return nil, err
	}
	info.ClusterID = id(members.ClusterID)
	var err error
	if info.Stores, err = a.stores(ctx); err != nil {
		return nil, err
	}
	info.Unreachable = append(info.Unreachable, a.unreached(ctx, info, members)...)
	return info, nil
}

// membersInfo is the answer about the members of the placement service.
type membersInfo struct {
	ClusterID uint64 `json:"cluster_id"`
	Members   []struct {
		Name       string   `json:"name"`
		ClientURLs []string `json:"client_urls"`
	} `json:"members"`
}

// target is a process that should be reached.
type target struct{ name, addr string }

// unreached dials all processes at once. Those that the report names as silent or dead are left
// out: that is known.
func (a *app) unreached(ctx context.Context, info *clusterInfo, members membersInfo) []string {
	known := map[string]bool{}
	for _, c := range info.Conditions {
		if c.Code == health.StoreSilent || c.Code == health.MemberDead {
			known[c.Subject] = true
		}
	}
	var targets []target
	seen := map[string]bool{}
	add := func(name, addr string) {
		if !seen[addr] && !known[name] {
			targets = append(targets, target{name, addr})
		}
		seen[addr] = true
	}
	for _, m := range members.Members {
		for _, u := range m.ClientURLs {
			add("member "+m.Name, hostPort(u))
		}
	}
	for _, e := range a.endpoints() {
		add("the placement service", hostPort(e))
	}
	for _, s := range info.Stores {
		if s.State != "Tombstone" {
			add("store "+id(s.ID), s.Address)
		}
	}
	errs := make([]string, len(targets))
	var wg sync.WaitGroup
	for i, t := range targets {
		wg.Add(1)
		go func() { // waited for below
			defer wg.Done()
			dialer := net.Dialer{Timeout: reachTimeout}
			conn, err := dialer.DialContext(ctx, "tcp", t.addr)
			if err != nil {
				errs[i] = fmt.Sprintf("cannot reach %s at %s from here: %v", t.name, t.addr,
					withoutAddress(err))
				return
			}
			_ = conn.Close() // nothing was sent
		}()
	}
	wg.Wait()
	out := errs[:0]
	for _, e := range errs {
		if e != "" {
			out = append(out, e)
		}
	}
	return out
}

// withoutAddress leaves out the address, which the line has already.
func withoutAddress(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

func hostPort(addr string) string {
	addr = strings.TrimSpace(addr)
	if u, err := url.Parse(addr); err == nil && u.Host != "" {
		return u.Host
	}
	return strings.TrimRight(addr, "/")
}

func (a *app) printStatus(info *clusterInfo) error {
	mode := ""
	if info.Mode != "" {
		mode = ", mode " + info.Mode
	}
	fmt.Fprintf(a.stdout,
		"Cluster %s%s: %d of %d stores up, %d regions, %d replicas wanted, %d of %d placement members alive.\n",
		info.ClusterID, mode, info.Counts.StoresUp, info.Counts.Stores, info.Counts.Regions,
		info.Counts.Replicas,
		info.Counts.MembersAlive, info.Counts.Members)
	fmt.Fprintln(a.stdout, info.Summary)
	for _, c := range info.Conditions {
		mark := "!"
		if c.Severity == health.SeverityNotice {
			mark = "-"
		}
		fmt.Fprintf(a.stdout, "%s %s, for %s\n    -> %s\n", mark, c, lasting(c.Seconds), c.Advice)
	}
	for _, u := range info.Unreachable {
		fmt.Fprintln(a.stdout, "! "+u)
	}
	return a.printStores(info.Stores)
}

func lasting(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(time.Second).String()
}

// stores lists all stores as the placement service describes them, tombstones included.
func (a *app) stores(ctx context.Context) ([]storeRow, error) {
	var out storesInfo
	if _, err := a.ask(ctx, http.MethodGet, "/stores?tombstone=1", nil, &out); err != nil {
		return nil, err
	}
	rows := make([]storeRow, 0, len(out.Stores))
	for _, st := range out.Stores {
		row := storeRow{
			Heartbeat: st.LastHeartbeat,
			ID:        st.ID, Address: st.Address, Status: st.StatusAddress, State: title(st.State),
			Regions: st.Regions, Leaders: st.Leaders,
			Used: st.Used, Available: st.Available,
		}
		if st.LastHeartbeat != nil && st.State != "tombstone" {
			row.Silent = lasting(st.Silent) + " ago"
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func title(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// codeError ends with an exit code of its own.
type codeError struct {
	code int
	err  error
}

func (e *codeError) Error() string { return e.err.Error() }
func (e *codeError) Unwrap() error { return e.err }

// exitCode is the exit code of a command that failed.
func exitCode(err error) int {
	var usage *usageError
	var code *codeError
	var api *apiFailure
	switch {
	case errors.As(err, &usage), strings.HasPrefix(err.Error(), "unknown command"):
		return exitUsage
	case errors.As(err, &code):
		return code.code
	case errors.As(err, &api) && api.status == http.StatusNotFound:
		return exitNotFound
	}
	return exitFail
}
