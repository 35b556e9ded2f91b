package ctl

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/tinykv/tinykv/cmd/tinyctl/ycsb"
)

func (a *app) ycsbCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "ycsb load|run [WORKLOAD]", Short: "Run the core workloads a to f of YCSB",
		Args: args(cobra.RangeArgs(1, 2)),
		Long: `Properties have the names that YCSB's tools use: recordcount, operationcount, threadcount, readproportion,
requestdistribution and so on. Files come first, then -p; both override the workload's own settings.`,
		Example: "  tinyctl bench ycsb load a -p recordcount=100000\n  tinyctl bench ycsb run a -p recordcount=100000 -p operationcount=500000 -p threadcount=64",
	}
	var t benchTarget
	f := cmd.Flags()
	files := f.StringArrayP("property-file", "P", nil, "file of key=value lines; may be repeated")
	sets := f.StringArrayP("prop", "p", nil, "a property, key=value; may be repeated")
	threads := f.Int("threads", 0, "the property threadcount")
	target := f.Float64("target", 0, "the property target: operations a second")
	a.benchTargetFlags(cmd, &t)
	_ = f.MarkHidden("format") // lines are the only format
	_ = f.MarkHidden("pids")   // the servers' CPU is not shown
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		phases := map[string]func(context.Context, ycsb.Store, ycsb.Config, io.Writer) error{
			"load": ycsb.Load, "run": ycsb.Run,
		}
		if a.output == "json" {
			return usagef("ycsb prints the lines of YCSB, which have no JSON form")
		}
		phase := phases[argv[0]]
		if phase == nil {
			return usagef("%q is neither load nor run", argv[0])
		}
		props := ycsb.Properties{}
		if err := readProperties(props, *files, *sets); err != nil {
			return err
		}
		if len(argv) > 1 {
			props["workload"] = argv[1]
		}
		if *threads != 0 {
			props["threadcount"] = fmt.Sprint(*threads)
		}
		if *target != 0 {
			props["target"] = fmt.Sprint(*target)
		}
		c, err := props.Config()
		if err != nil {
			return &usageError{err}
		}
		d, done, err := a.openTarget(cmd.Context(), &t)
		if err != nil {
			return err
		}
		defer done()
		return phase(cmd.Context(), d, c, a.stdout)
	}
	return cmd
}

func readProperties(props ycsb.Properties, files, sets []string) error {
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return &usageError{err}
		}
		err = props.ReadFile(f)
		_ = f.Close() // it was only read
		if err != nil {
			return usagef("%s: %w", name, err)
		}
	}
	for _, s := range sets {
		if err := props.Set(s); err != nil {
			return &usageError{err}
		}
	}
	return nil
}
