package ctl

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tinykv/tinykv/pkg/security"
	"github.com/tinykv/tinykv/scheduler/server/health"
)

// finding is something that is not as it should be, and what to do about it.
type finding struct {
	What   string `json:"what"`
	Advice string `json:"advice"`
}

// topic is a group of things that the doctor looks at.
type topic struct {
	Name     string    `json:"name"`
	Findings []finding `json:"findings"`
}

// topicOf groups the placement service's conditions. TestDoctorKnowsEveryCondition holds it
// complete.
var topicOf = map[health.Code]string{
	health.NoQuorum: "replicas", health.LeaderLost: "replicas", health.NoLeader: "replicas",
	health.Diverged:      "replicas",
	health.ReplicaSilent: "replicas", health.FewReplicas: "replicas", health.Starving: "replicas",
	health.Quarantined: "replicas",
	health.StoreSilent: "stores", health.StoreUnreached: "stores", health.StoreLeaving: "stores",
	health.DiskFull: "disks", health.LowDisk: "disks", health.SlowDisk: "disks",
	health.ReadErrors: "disks",
	health.ClockSkew:  "clocks", health.VersionsDiffer: "versions", health.Misplaced: "placement",
	health.MemberDead: "placement service", health.Alarm: "placement service",
}

// topics are in the order in which they are shown.
var topics = []string{
	"placement service", "stores", "reached from here", "replicas", "placement", "disks", "clocks",
	"versions", "open files", "certificates",
}

const (
	// fewFiles is a limit of open files that a store can live with, and not well.
	fewFiles = 4096
	// filesUsed is the part of the limit from which a store is short of files.
	filesUsed = 0.8
)

func (a *app) doctorCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look for what is wrong with the cluster, and say what to do; exit code 0 nothing, 1 something, 3 cannot tell",
		Args:  args(cobra.NoArgs),
		Long: `Puts together what the placement service reports (as tinyctl status does), what this machine reaches, the limits of open files of
the stores, and how long the certificates are good that servers show and that this command is given.`,
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), a.timeout)
		defer cancel()
		info, err := a.look(ctx)
		if err != nil {
			return statusError(err)
		}
		found, err := a.examine(ctx, info)
		if err != nil {
			return err
		}
		if err := a.printTopics(info, found); err != nil {
			return err
		}
		for _, t := range found {
			if len(t.Findings) > 0 {
				return errSilent
			}
		}
		if info.Health == health.Unknown {
			return &codeError{exitUnknown, errSilent}
		}
		return nil
	}
	return cmd
}

// examine looks at everything.
func (a *app) examine(ctx context.Context, info *clusterInfo) ([]topic, error) {
	by := map[string][]finding{}
	for _, c := range info.Conditions {
		name := topicOf[c.Code]
		by[name] = append(by[name], finding{c.String(), c.Advice})
	}
	for _, u := range info.Unreachable {
		by["reached from here"] = append(by["reached from here"],
			finding{u, "check the address that it advertises, and the network between"})
	}
	secure, err := a.secure()
	if err != nil {
		return nil, err
	}
	targets := a.endpoints()
	for _, s := range info.Stores {
		if s.State == "Tombstone" {
			continue
		}
		targets = append(targets, s.Address)
		by["open files"] = append(by["open files"], filesOfStore(ctx, s, secure)...)
	}
	by["certificates"] = certFindings(ctx, a.tls, targets, secure)
	var out []topic
	for _, name := range topics {
		t := topic{Name: name, Findings: by[name]}
		if t.Findings == nil {
			t.Findings = []finding{}
		}
		out = append(out, t)
	}
	return out, nil
}

// filesOfStore looks whether a store is short of open files. A store that cannot be asked is found
// elsewhere.
func filesOfStore(ctx context.Context, s storeRow, secure *tls.Config) []finding {
	if s.Status == "" {
		return nil
	}
	values, err := scrape(ctx, s.Status, secure, "process_open_fds", "process_max_fds")
	if err != nil {
		return []finding{{
			fmt.Sprintf("the status port of store %d at %s does not answer: %v", s.ID, s.Status,
				err),
			"check status-addr and advertise-status-addr of the store",
		}}
	}
	open, limit := values["process_open_fds"], values["process_max_fds"]
	switch {
	case limit == 0:
		return nil
	case open > filesUsed*limit:
		return []finding{
			{
				fmt.Sprintf("store %d has %.0f of at most %.0f files open", s.ID, open, limit),
				"raise its limit of open files (ulimit -n, LimitNOFILE)",
			},
		}
	case limit < fewFiles:
		return []finding{
			{
				fmt.Sprintf("store %d may have %.0f files open only", s.ID, limit),
				"raise its limit of open files (ulimit -n, LimitNOFILE) to " +
					strconv.Itoa(fewFiles) + " or more",
			},
		}
	}
	return nil
}

// scrape reads metrics of a status port.
func scrape(
	ctx context.Context, addr string, secure *tls.Config, names ...string,
) (map[string]float64, error) {
	scheme := "http://"
	client := &http.Client{
		Timeout:   reachTimeout,
		Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: secure},
	}
	if secure != nil {
		scheme = "https://"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+addr+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, withoutAddress(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("it answers %s", resp.Status)
	}
	out := map[string]float64{}
	lines := bufio.NewScanner(io.LimitReader(resp.Body, 16<<20))
	for lines.Scan() {
		name, value, ok := strings.Cut(lines.Text(), " ")
		if !ok || !slices.Contains(names, name) {
			continue
		}
		if out[name], err = strconv.ParseFloat(value, 64); err != nil {
			return nil, err
		}
	}
	return out, lines.Err()
}

// certFindings looks at the certificates that this command was given, and at those that the servers
// show.
func certFindings(
	ctx context.Context, files security.Files, targets []string, secure *tls.Config,
) []finding {
	if secure == nil {
		return nil
	}
	var out []finding
	now := time.Now()
	check := func(who string, c *x509.Certificate) {
		const advice = "make a new one (tinyctl cert) and put it in its place; it is used without a restart"
		switch left := c.NotAfter.Sub(now); {
		case left <= 0:
			out = append(out,
				finding{
					fmt.Sprintf("%s is good until %s only", who,
						c.NotAfter.UTC().Format(time.RFC3339)), advice,
				})
		case left < expirySoon:
			out = append(out,
				finding{
					fmt.Sprintf("%s is good for %d more days only", who, int(left.Hours()/24)),
					advice,
				})
		}
	}
	for _, path := range []string{files.CA, files.Cert} {
		if path == "" {
			continue
		}
		certs, err := security.ReadCerts(path)
		if err != nil {
			out = append(out, finding{err.Error(), "give a file of certificates"})
			continue
		}
		for _, c := range certs {
			check("the certificate in "+path, c)
		}
	}
	for _, addr := range targets {
		for _, c := range shown(ctx, hostPort(addr), secure) {
			check("the certificate of "+hostPort(addr), c)
		}
	}
	return out
}

// shown is the certificate that a server shows; none if it cannot be reached, or serves without
// TLS, which is found elsewhere.
func shown(ctx context.Context, addr string, secure *tls.Config) []*x509.Certificate {
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil
	}
	cfg := secure.Clone()
	cfg.ServerName = host
	var seen []*x509.Certificate
	cfg.InsecureSkipVerify = true // looked at only; nothing is sent
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		seen = cs.PeerCertificates[:1]
		return nil
	}
	d := tls.Dialer{Config: cfg}
	if nc, err := d.DialContext(ctx, "tcp", addr); err == nil {
		_ = nc.Close()
	}
	return seen
}

func (a *app) printTopics(info *clusterInfo, found []topic) error {
	if a.output == "json" {
		return a.json(map[string]any{
			"cluster_id": info.ClusterID, "summary": info.Summary, "topics": found,
		})
	}
	fmt.Fprintf(a.stdout, "Cluster %s. %s\n", info.ClusterID, info.Summary)
	for _, t := range found {
		mark := "ok"
		if len(t.Findings) > 0 {
			mark = "!!"
		}
		fmt.Fprintf(a.stdout, "%s  %s\n", mark, t.Name)
		for _, f := range t.Findings {
			fmt.Fprintf(a.stdout, "      %s\n        -> %s\n", f.What, f.Advice)
		}
	}
	return nil
}
