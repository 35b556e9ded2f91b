package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// operatorInfo is a plan for one region as the API describes it.
type operatorInfo struct {
	Region   uint64    `json:"region_id"`
	Desc     string    `json:"desc"`
	Kind     string    `json:"kind"`
	Priority string    `json:"priority"`
	Status   string    `json:"status"`
	Why      string    `json:"why"`
	Reason   string    `json:"reason"`
	Steps    []string  `json:"steps"`
	Current  int       `json:"current_step"`
	SizeMiB  int64     `json:"size_mib"`
	Started  time.Time `json:"started"`
	Seconds  float64   `json:"seconds"`
}

func (o operatorInfo) running() bool {
	return o.Status == "created" || o.Status == "running"
}

func (a *app) operatorCmd() *cobra.Command {
	return group("operator", "What is being done, and was done, to regions",
		a.operatorListCmd("list", "List running operators", "/operators"),
		a.operatorListCmd("history", "List operators that ended, the latest first",
			"/operators/history"),
		command("show REGION", "Show the region's running or last operator",
			func(cmd *cobra.Command, argv []string) error {
				return a.oneOperator(cmd, http.MethodGet, argv[0])
			}),
		command("cancel REGION", "Cancel the operator of a region",
			func(cmd *cobra.Command, argv []string) error {
				return a.oneOperator(cmd, http.MethodDelete, argv[0])
			}),
	)
}

func (a *app) oneOperator(cmd *cobra.Command, method, arg string) error {
	n, err := number(arg, "region")
	if err != nil {
		return err
	}
	var op operatorInfo
	return a.show(cmd, method, "/operators/"+id(n), nil, &op, func() error {
		return a.printOperator(op)
	})
}

func (a *app) operatorListCmd(name, short, path string) *cobra.Command {
	cmd := command(name, short, nil)
	kind := cmd.Flags().String("kind", "",
		"only operators whose kind has this in it, as in the column KIND")
	limit := cmd.Flags().IntP("limit", "n", 50, "at most so many")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var out struct {
			Operators []operatorInfo `json:"operators"`
		}
		path := fmt.Sprintf("%s?limit=%d&kind=%s", path, *limit, url.QueryEscape(*kind))
		return a.show(cmd, http.MethodGet, path, nil, &out, func() error {
			var rows [][]string
			for _, o := range out.Operators[:min(len(out.Operators), max(*limit, 0))] {
				rows = append(rows, []string{
					id(o.Region), o.Desc, o.Kind, o.Status,
					fmt.Sprintf("%d/%d", min(o.Current, len(o.Steps)), len(o.Steps)),
					mib(o.SizeMiB),
					o.Started.Local().Format(time.DateTime), seconds(o.Seconds),
					strings.Trim(o.Why+"; "+o.Reason, "; "),
				})
			}
			return a.table([]string{
				"REGION", "OPERATOR", "KIND", "STATUS", "STEPS", "SIZE", "STARTED", "TOOK", "WHY",
			}, rows)
		})
	}
	return cmd
}

func (a *app) printOperator(o operatorInfo) error {
	line := fmt.Sprintf("%s of region %d: %s", o.Desc, o.Region, o.Status)
	if !o.running() {
		line += " after " + seconds(o.Seconds)
	}
	if o.Reason != "" {
		line += " (" + o.Reason + ")"
	}
	if _, err := fmt.Fprintln(a.stdout, line); err != nil {
		return err
	}
	for i, s := range o.Steps {
		mark := " "
		if i < o.Current || o.Status == "success" {
			mark = "x"
		}
		if _, err := fmt.Fprintf(a.stdout, "  [%s] %s\n", mark, s); err != nil {
			return err
		}
	}
	return nil
}

// operate asks for an action on a region and prints the operator that does it.
func (a *app) operate(cmd *cobra.Command, region uint64, action string, body any, wait bool) error {
	var op operatorInfo
	data, err := a.ask(cmd.Context(), http.MethodPost, "/regions/"+id(region)+"/"+action, body, &op)
	if err != nil {
		return err
	}
	if wait && op.Status != "success" { // it may have had nothing to do
		if data, err = a.waitOperator(cmd.Context(), &op); err != nil {
			return err
		}
		if action == "split" && op.Status == "success" {
			if err = a.waitSplit(cmd.Context(), region, len(op.Steps)); err != nil {
				return err
			}
		}
	}
	if a.output == "json" {
		err = a.raw(data)
	} else {
		err = a.printOperator(op)
	}
	if err == nil && wait && op.Status != "success" {
		err = errSilent
	}
	return err
}

// waitSplit waits until the parts right of a region that was just split have leaders known to the
// placement service, which then admits operators for them.
func (a *app) waitSplit(ctx context.Context, region uint64, parts int) error {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	var r regionInfo
	if _, err := a.ask(ctx, http.MethodGet, "/regions/"+id(region), nil, &r); err != nil {
		return err
	}
	for range parts {
		for end := r.End; ; {
			var next struct {
				Regions []regionInfo `json:"regions"`
			}
			_, err := a.ask(ctx, http.MethodGet, "/regions?limit=1&start="+end, nil, &next)
			if err == nil && len(next.Regions) > 0 && next.Regions[0].Start == end &&
				next.Regions[0].Confirmed {
				r = next.Regions[0]
				break
			}
			switch {
			case errors.Is(ctx.Err(), context.DeadlineExceeded):
				return fmt.Errorf(
					"region %d is split, but after %s the part from %s on has no leader yet",
					region, a.timeout, shownKey(end, "-inf"))
			case err != nil:
				return err
			}
			pause(ctx)
		}
	}
	return nil
}

// pause waits a little before the next question, or until ctx ends.
func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(retryPause):
	}
}

// waitOperator follows an operator until it ends. Others may follow for the same region before it
// is looked at again; then it is in the history.
func (a *app) waitOperator(ctx context.Context, op *operatorInfo) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	for {
		var now operatorInfo
		data, err := a.ask(ctx, http.MethodGet, "/operators/"+id(op.Region), nil, &now)
		if err == nil && !now.is(op) {
			now, data, err = a.findEnded(ctx, op)
		}
		switch {
		case errors.Is(ctx.Err(), context.DeadlineExceeded):
			return nil,
				fmt.Errorf("%s of region %d is not done after %s; it goes on", op.Desc, op.Region,
					a.timeout)
		case err != nil:
			return nil, err
		case !now.running():
			*op = now
			return data, nil
		}
		pause(ctx)
	}
}

// is tells whether both describe the same operator.
func (o operatorInfo) is(other *operatorInfo) bool {
	return o.Region == other.Region && o.Desc == other.Desc && o.Started.Equal(other.Started)
}

// findEnded looks for an operator in the history.
func (a *app) findEnded(
	ctx context.Context, op *operatorInfo,
) (ended operatorInfo, data []byte, err error) {
	var history struct {
		Operators []json.RawMessage `json:"operators"`
	}
	if _, err := a.ask(ctx, http.MethodGet, "/operators/history?limit=1000", nil,
		&history); err != nil {
		return ended, nil, err
	}
	for _, data := range history.Operators {
		var old operatorInfo
		if err := json.Unmarshal(data, &old); err == nil && old.is(op) {
			return old, data, nil
		}
	}
	return ended, nil,
		fmt.Errorf("what became of %s of region %d is not known: others followed", op.Desc,
			op.Region)
}

func (a *app) schedulerCmd() *cobra.Command {
	pause := command("pause NAME", "Stop a policy for a while", nil)
	span := pause.Flags().Duration("for", time.Hour, "how long")
	pause.RunE = func(cmd *cobra.Command, argv []string) error {
		if *span <= 0 {
			return usagef("--for %s is not above zero", *span)
		}
		return a.printSchedulers(cmd, http.MethodPost,
			"/"+url.PathEscape(argv[0])+"/pause?for="+span.String())
	}
	return group("scheduler", "Policies that balance the cluster",
		command("list", "List the policies", func(cmd *cobra.Command, _ []string) error {
			return a.printSchedulers(cmd, http.MethodGet, "")
		}),
		pause,
		command("resume NAME", "End a pause", func(cmd *cobra.Command, argv []string) error {
			return a.printSchedulers(cmd, http.MethodPost, "/"+url.PathEscape(argv[0])+"/resume")
		}),
	)
}

func (a *app) printSchedulers(cmd *cobra.Command, method, path string) error {
	var out struct {
		Schedulers []struct {
			Name    string  `json:"name"`
			Enabled bool    `json:"enabled"`
			Paused  bool    `json:"paused"`
			Left    float64 `json:"paused_seconds"`
		} `json:"schedulers"`
	}
	return a.show(cmd, method, "/schedulers"+path, nil, &out, func() error {
		var rows [][]string
		for _, s := range out.Schedulers {
			state := "running"
			if !s.Enabled {
				state = "disabled"
			}
			if s.Paused {
				state = "paused for " + lasting(s.Left)
			}
			rows = append(rows, []string{s.Name, state})
		}
		return a.table([]string{"SCHEDULER", "STATE"}, rows)
	})
}
