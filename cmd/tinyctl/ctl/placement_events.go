package ctl

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sort"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/tinykv/tinykv/cmd/tinyctl/contract"
	"github.com/tinykv/tinykv/cmd/tinyctl/top"
)

// eventWidth bounds the text of an event in tables: changed settings come whole.
const eventWidth = 160

type event struct {
	Seq  uint64    `json:"seq"`
	Time time.Time `json:"time"`
	Kind string    `json:"kind"`
	Text string    `json:"text"`
}

func (a *app) eventsCmd() *cobra.Command {
	cmd := command("events", "List what happened in the cluster; -f goes on with what happens", nil)
	follow := cmd.Flags().BoolP("follow", "f", false,
		"print new events until interrupted; with -o json one object a line")
	limit := cmd.Flags().IntP("limit", "n", 50, "begin with at most so many past events")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *limit < 0 {
			return usagef("--limit %d is negative", *limit)
		}
		var out struct {
			Events []event `json:"events"`
		}
		n := *limit
		if *follow {
			n = max(n, 1) // what comes after it is new
		}
		data, err := a.ask(cmd.Context(), http.MethodGet, fmt.Sprintf("/events?limit=%d", n), nil,
			&out)
		if err != nil {
			return err
		}
		if a.output == "json" && !*follow {
			return a.raw(data)
		}
		var last event
		if len(out.Events) > 0 {
			last = out.Events[len(out.Events)-1]
		}
		for _, e := range out.Events[:min(len(out.Events), *limit)] {
			if err := a.printEvent(e); err != nil {
				return err
			}
		}
		if !*follow {
			return nil
		}
		return a.followEvents(cmd.Context(), last)
	}
	return cmd
}

func (a *app) printEvent(e event) error {
	if a.output == "json" {
		return json.NewEncoder(a.stdout).Encode(e)
	}
	text := e.Text
	if r := []rune(text); len(r) > eventWidth {
		text = string(r[:eventWidth-1]) + "…"
	}
	_, err := fmt.Fprintf(a.stdout, "%s  %-18s %s\n", e.Time.Local().Format(time.DateTime), e.Kind,
		text)
	return err
}

// followEvents prints events later than last until it is interrupted. Each leader counts its own
// events, so that after a change of leaders only the time tells which ones are new.
func (a *app) followEvents(ctx context.Context, last event) error {
	for ctx.Err() == nil {
		resp, err := a.reach(ctx, http.MethodGet, "/events?stream=1", nil)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the end that was asked for
		}
		if err != nil {
			return err
		}
		err = a.copyEvents(resp.Body, &last)
		resp.Body.Close()
		if err != nil {
			return err
		}
		pause(ctx)
	}
	return nil
}

// copyEvents prints the stream's events that are newer than last; the end of the stream is no
// error.
func (a *app) copyEvents(stream io.Reader, last *event) error {
	lines := bufio.NewScanner(stream)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var e event
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return fmt.Errorf("event %q: %w", data, err)
		}
		if e.Time.Before(last.Time) || e.Time.Equal(last.Time) && e.Seq <= last.Seq {
			continue
		}
		*last = e
		if err := a.printEvent(e); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) explainCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain [POLICY [REGION]]",
		Short: "Say what each policy decided last, and what refused whom",
		Args:  args(cobra.MaximumNArgs(2)),
	}
	cmd.Long = `What each policy of the placement service decided last, and what refused whom.

  tinyctl explain
  tinyctl explain balance-region
  tinyctl explain merge 42          # why region 42 is merged or not`
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		path := "/explain"
		if len(argv) > 0 {
			path += "?scheduler=" + url.QueryEscape(argv[0])
		}
		if len(argv) == 2 {
			n, err := number(argv[1], "region")
			if err != nil {
				return err
			}
			path += "&region=" + id(n)
		}
		var out struct {
			Prepared  bool       `json:"prepared"`
			Decisions []decision `json:"decisions"`
		}
		data, err := a.ask(cmd.Context(), http.MethodGet, path, nil, &out)
		if err != nil {
			return err
		}
		if len(argv) > 0 && len(out.Decisions) == 0 {
			return notFoundf("no decision of a policy %q; `tinyctl explain` shows all there are",
				argv[0])
		}
		if a.output == "json" {
			return a.raw(data)
		}
		if !out.Prepared {
			fmt.Fprintln(a.stdout,
				"Not prepared: nothing is balanced until the stores have reported their regions.")
		}
		for _, d := range out.Decisions {
			d.print(a.stdout)
		}
		return nil
	}
	return cmd
}

type decision struct {
	Scheduler string         `json:"scheduler"`
	At        time.Time      `json:"at"`
	Result    string         `json:"result"`
	Lines     []string       `json:"lines"`
	Refusals  map[string]int `json:"refusals"`
}

func (d decision) print(w io.Writer) {
	fmt.Fprintf(w, "%s (%s): %s\n", d.Scheduler, d.At.Local().Format(time.DateTime), d.Result)
	for _, l := range d.Lines {
		fmt.Fprintf(w, "  %s\n", l)
	}
	names := make([]string, 0, len(d.Refusals))
	for name := range d.Refusals {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Fprintf(w, "  refused by %s: %d\n", name, d.Refusals[name])
	}
}

// topCmd shows what the stores do, again and again until it is interrupted.
func topCmd(a *app) *cobra.Command {
	cmd := command("top",
		"Show requests, latencies and load by store, and the regions with the most load, until interrupted", nil)
	once := cmd.Flags().Bool("once", false, "print it once")
	interval := cmd.Flags().Duration("interval", 5*time.Second,
		"how often it is asked for; stores report every 10 seconds by default")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *interval < 100*time.Millisecond {
			return usagef("--interval %s is less than 100ms", *interval)
		}
		for {
			v, err := topView(cmd.Context(), a)
			switch {
			case err != nil:
				return err
			case a.output == "json":
				err = a.json(v)
			default:
				if !*once {
					// the cursor goes home, the screen is cleared
					fmt.Fprint(a.stdout, "\033[H\033[J")
				}
				err = top.Write(a.stdout, v, humanize.IBytes)
			}
			if err != nil || *once {
				return err
			}
			select {
			case <-time.After(*interval):
			case <-cmd.Context().Done():
				return nil
			}
		}
	}
	return cmd
}

// topView asks the placement service.
func topView(ctx context.Context, a *app) (*top.View, error) {
	v := &top.View{MostWritten: []top.Region{}, MostRead: []top.Region{}}
	var history struct {
		Points []top.Point `json:"points"`
	}
	var health struct {
		Summary string `json:"summary"`
	}
	after := url.QueryEscape(time.Now().Add(-time.Minute).UTC().Format(time.RFC3339))
	if _, err := a.ask(ctx, http.MethodGet, "/history?after="+after, nil, &history); err != nil {
		return nil, err
	}
	if _, err := a.ask(ctx, http.MethodGet, "/health", nil, &health); err != nil {
		return nil, err
	}
	if v.HealthStatus = health.Summary; len(history.Points) == 0 {
		v.Time, v.Stores = time.Now(), []top.Store{}
		v.HealthStatus += " No point of the history is younger than a minute: the placement leader has just begun."
	} else {
		v.Point = history.Points[len(history.Points)-1]
	}
	for kind, into := range map[string]*[]top.Region{"write": &v.MostWritten, "read": &v.MostRead} {
		var hot struct {
			Regions []top.Region `json:"regions"`
		}
		if _, err := a.ask(ctx, http.MethodGet,
			fmt.Sprintf("/hot?kind=%s&limit=%d", kind, top.Most), nil, &hot); err != nil {
			return nil, err
		}
		for _, r := range hot.Regions {
			if r.StartText != nil { // the API has it in hex
				r.StartHex = *r.StartText
			}
			key, err := hex.DecodeString(r.StartHex)
			if err != nil {
				return nil, fmt.Errorf("region %d begins at %q: %w", r.ID, r.StartHex, err)
			}
			r.Start, r.StartText = encode("text", key), contract.Text(key)
			*into = append(*into, r)
		}
	}
	return v, nil
}
