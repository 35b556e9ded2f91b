package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/tinykv/tinykv/cmd/tinyctl/loadgen"
	"github.com/tinykv/tinykv/tests/bench/rig"
)

// TiKV's Go client is linked into a program of another module (tests/tikv), so that its libraries
// do not mix with this module's. The program measures by the same rules and prints the same line.

const clientgoName = "client-go"

// besideName is the series of the native stream that is measured beside each cell of client-go:
// what a get costs depends on what was written before it, so a cell that was measured earlier is
// none to compare with.
const besideName = "stream beside"

// clientgo measures TiKV's client and the native stream, in every second round the other way about.
func (b *bench) clientgo(ctx context.Context, s *rig.TinyKV) error {
	for _, c := range clientgoCells {
		if !b.o.wants(clientgoPrefix + c.String()) {
			continue
		}
		steps := []func() error{
			func() error { return b.cell(ctx, s, besideName, rig.Mode{}, c) },
			func() error { return b.clientgoCell(ctx, s, c) },
		}
		if b.round%2 == 1 {
			steps[0], steps[1] = steps[1], steps[0]
		}
		for _, step := range steps {
			if err := step(); err != nil {
				return fmt.Errorf("%s %s: %w", clientgoName, c, err)
			}
		}
	}
	return nil
}

func (b *bench) clientgoCell(ctx context.Context, s *rig.TinyKV, c cell) error {
	conf := b.config(s, c)
	args := []string{
		"-pd", s.Endpoints()[0], "-phase", c.phase, "-workers", fmt.Sprint(c.workers), "-keys",
		fmt.Sprint(conf.Keys),
		"-value-size", fmt.Sprint(conf.ValueSize), "-warmup", conf.Warmup.String(), "-duration",
		conf.Duration.String(),
		"-pids", strings.Trim(strings.ReplaceAll(fmt.Sprint(conf.PIDs), " ", ","), "[]"),
	}
	profiled := func() error { return nil }
	if b.o.profile != "" {
		var err error
		if conf.OnMeasure, profiled, err = b.profile(ctx, s, clientgoName, c); err != nil {
			return err
		}
		file := fmt.Sprintf("%s-%s-round%d-client.pprof", clientgoName, c, b.round+1)
		args = append(args, "-cpuprofile", filepath.Join(b.o.profile, file))
	}
	// Starting, looking for the cluster and ending take no more.
	ctx, cancel := context.WithTimeout(ctx, conf.Warmup+conf.Duration+startLimit)
	defer cancel()
	res, err := runClientgo(ctx, b.o.clientgo, args, conf.OnMeasure)
	if err != nil {
		return err
	}
	if err := profiled(); err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	b.note(clientgoName, c, res)
	return nil
}

// runClientgo runs the program and reads its result. onMeasure, which may be nil, is called in a
// goroutine of its own when its warm-up ends.
func runClientgo(
	ctx context.Context, program string, args []string, onMeasure func(),
) (res loadgen.Result, err error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stderr = os.Stderr
	cmd.WaitDelay = time.Second
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	out, err := cmd.StdoutPipe()
	if err != nil {
		return res, err
	}
	if err := cmd.Start(); err != nil {
		return res, err
	}
	found := false
	for lines := bufio.NewScanner(out); lines.Scan(); {
		switch line := lines.Bytes(); {
		case string(line) != "measuring":
			found = true
			err = errors.Join(err, json.Unmarshal(line, &res))
		case onMeasure != nil:
			go onMeasure() // owned by the caller
		}
	}
	if werr := cmd.Wait(); werr != nil || err != nil {
		return res, errors.Join(werr, err)
	}
	if !found {
		return res, errors.New("the program printed no result")
	}
	return res, nil
}
