package ctl

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/tinykv/tinykv/kv/client"
)

// importStats counts what an import or export has done.
type importStats struct {
	Files int64         `json:"files"`
	Bytes int64         `json:"bytes"`
	Took  time.Duration `json:"took_ns"`
}

func (s importStats) String() string {
	rate := float64(s.Bytes) / max(s.Took.Seconds(), 0.001)
	return fmt.Sprintf("%d entries, %s in %s (%s/s)", s.Files, humanize.IBytes(uint64(s.Bytes)),
		s.Took.Round(10*time.Millisecond), humanize.IBytes(uint64(rate)))
}

func (a *app) importCmd() *cobra.Command {
	dir := &cobra.Command{
		Use: "dir DIR", Short: "Load a tree of files: key = prefix + path below DIR, value = content", Args: args(cobra.ExactArgs(1)),
	}
	prefix := dir.Flags().String("prefix", "", "put this in front of every key")
	workers := dir.Flags().IntP("workers", "w", 32, "concurrent writers")
	quiet := dir.Flags().BoolP("quiet", "q", false, "no progress bar")
	dir.RunE = func(cmd *cobra.Command, argv []string) error {
		c, err := a.openWith(cmd.Context(), bulkOptions(a.timeout))
		if err != nil {
			return err
		}
		defer c.Close()
		st, err := a.importDir(cmd.Context(), c, argv[0], *prefix, *workers, *quiet)
		if err != nil {
			return err
		}
		fmt.Fprintf(a.stderr, "imported %s\n", st)
		return nil
	}
	file := &cobra.Command{
		Use: "file FILE", Short: `Load pairs from JSON lines ({"key":…,"value":…}) or TSV (key<TAB>value); - is standard input`,
		Args: args(cobra.ExactArgs(1)),
	}
	a.keyFlags(file)
	format := file.Flags().String("format", "", "jsonl or tsv (default: by the file's suffix, else jsonl)")
	fileWorkers := file.Flags().IntP("workers", "w", 32, "concurrent writers")
	file.RunE = func(cmd *cobra.Command, argv []string) error {
		return a.importFile(cmd.Context(), argv[0], *format, *fileWorkers)
	}
	return group("import", "Load files into the cluster", dir, file)
}

// bulkOptions gives operations more time: under full load they wait.
func bulkOptions(timeout time.Duration) client.Options {
	return client.Options{Timeout: max(timeout, time.Minute)}
}

// listFiles lists the regular files below dir, as slash-separated paths relative to it, with sizes.
func listFiles(dir string) (paths []string, total int64, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		total += info.Size()
		paths = append(paths, filepath.ToSlash(rel))
		return nil
	})
	if err == nil && len(paths) == 0 {
		err = fmt.Errorf("no files in %s", dir)
	}
	return paths, total, err
}

func (a *app) bar(total int64, what string, quiet bool) *progressbar.ProgressBar {
	return a.barOf(total, what, quiet, true)
}

// barOf shows how much of a total is done, of bytes or of something else.
func (a *app) barOf(total int64, what string, quiet, bytes bool) *progressbar.ProgressBar {
	out := a.stderr
	if f, ok := out.(*os.File); quiet || !ok || !term.IsTerminal(int(f.Fd())) {
		out = io.Discard // in a file it would be one endless line
	}
	return progressbar.NewOptions64(total, progressbar.OptionSetWriter(out), progressbar.OptionSetDescription(what),
		progressbar.OptionShowBytes(bytes), progressbar.OptionThrottle(200*time.Millisecond), progressbar.OptionClearOnFinish())
}

func (a *app) importDir(ctx context.Context, c *client.Client, dir, prefix string, workers int, quiet bool) (importStats, error) {
	start := time.Now()
	paths, total, err := listFiles(dir)
	if err != nil {
		return importStats{}, err
	}
	bar := a.bar(total, "importing", quiet)
	defer func() { _ = bar.Close() }()
	var st importStats
	err = parallel(ctx, workers, paths, func(ctx context.Context, path string) error {
		data, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(path)))
		if err != nil {
			return err
		}
		if err := c.Put(ctx, []byte(prefix+path), data); err != nil {
			return fmt.Errorf("put %s: %w", path, err)
		}
		atomic.AddInt64(&st.Files, 1)
		atomic.AddInt64(&st.Bytes, int64(len(data)))
		return bar.Add(len(data))
	})
	st.Took = time.Since(start)
	return st, err
}

// parallel runs do for every item on a number of goroutines and returns the first error.
func parallel[T any](ctx context.Context, workers int, items []T, do func(context.Context, T) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range max(workers, 1) {
		wg.Add(1)
		// Ends when the items are used up or ctx is done.
		go func() {
			defer wg.Done()
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(items) {
					return
				}
				if err := do(ctx, items[i]); err != nil {
					cancel(err)
				}
			}
		}()
	}
	wg.Wait()
	return context.Cause(ctx)
}

func (a *app) importFile(ctx context.Context, path, format string, workers int) error {
	in := a.stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	if format == "" {
		format = "jsonl"
		if strings.HasSuffix(path, ".tsv") {
			format = "tsv"
		}
	}
	if format != "jsonl" && format != "tsv" {
		return usagef("--format %q is neither jsonl nor tsv", format)
	}
	c, err := a.openWith(ctx, bulkOptions(a.timeout))
	if err != nil {
		return err
	}
	defer c.Close()
	start := time.Now()
	var st importStats
	r := bufio.NewReaderSize(in, 1<<20)
	var batch []client.KV
	size := 0
	flush := func() error {
		err := c.PutAll(ctx, batch, workers)
		batch, size = batch[:0], 0
		return err
	}
	for line := 1; ; line++ {
		text, rerr := r.ReadBytes('\n')
		if text = bytes.TrimRight(text, "\r\n"); len(text) > 0 {
			kv, err := a.parseLine(format, text)
			if err != nil {
				return fmt.Errorf("%s, line %d: %w", path, line, err)
			}
			batch = append(batch, kv)
			size += len(kv.Key) + len(kv.Value)
			st.Files++
			st.Bytes += int64(len(kv.Key) + len(kv.Value))
		}
		if size > 8<<20 || len(batch) >= 4096 || rerr != nil {
			if err := flush(); err != nil {
				return err
			}
		}
		if errors.Is(rerr, io.EOF) {
			break
		}
		if rerr != nil {
			return rerr
		}
	}
	st.Took = time.Since(start)
	fmt.Fprintf(a.stderr, "imported %s\n", st)
	return nil
}

func (a *app) parseLine(format string, text []byte) (client.KV, error) {
	var key, value string
	if format == "tsv" {
		k, v, ok := strings.Cut(string(text), "\t")
		if !ok {
			return client.KV{}, errors.New("no tab between key and value")
		}
		key, value = k, v
	} else {
		var p struct {
			Key   *string `json:"key"`
			Value string  `json:"value"`
		}
		if err := json.Unmarshal(text, &p); err != nil {
			return client.KV{}, err
		}
		if p.Key == nil {
			return client.KV{}, errors.New(`no "key"`)
		}
		key, value = *p.Key, p.Value
	}
	k, err := decode(a.encoding, key)
	if err != nil {
		return client.KV{}, err
	}
	v, err := decode(a.encoding, value)
	return client.KV{Key: k, Value: v}, err
}

func (a *app) exportCmd() *cobra.Command {
	dir := &cobra.Command{
		Use: "dir DIR", Short: "Write each pair whose key begins with the prefix to the file DIR/<rest of the key>", Args: args(cobra.ExactArgs(1)),
	}
	prefix := dir.Flags().String("prefix", "", "only keys that begin with this; it is not part of the path")
	quiet := dir.Flags().BoolP("quiet", "q", false, "no progress bar")
	dir.RunE = func(cmd *cobra.Command, argv []string) error {
		c, err := a.openWith(cmd.Context(), bulkOptions(a.timeout))
		if err != nil {
			return err
		}
		defer c.Close()
		st, err := a.exportDir(cmd.Context(), c, argv[0], *prefix, *quiet)
		if err != nil {
			return err
		}
		fmt.Fprintf(a.stderr, "exported %s\n", st)
		return nil
	}
	return group("export", "Write the cluster's pairs to files", dir)
}

func (a *app) exportDir(ctx context.Context, c *client.Client, dir, prefix string, quiet bool) (importStats, error) {
	start := time.Now()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return importStats{}, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return importStats{}, err
	}
	defer root.Close()
	bar := a.bar(-1, "exporting", quiet)
	defer func() { _ = bar.Close() }()
	var st importStats
	err = c.Visit(ctx, []byte(prefix), prefixEnd([]byte(prefix)), 0, func(kv client.KV) error {
		path := strings.TrimPrefix(string(kv.Key), prefix)
		// The root refuses paths that lead out of the directory.
		if !filepath.IsLocal(filepath.FromSlash(path)) {
			return fmt.Errorf("key %s is no path below the directory", encode("text", kv.Key))
		}
		local := filepath.FromSlash(path)
		if err := root.MkdirAll(filepath.Dir(local), 0o755); err != nil {
			return err
		}
		if err := root.WriteFile(local, kv.Value, 0o644); err != nil {
			return err
		}
		st.Files++
		st.Bytes += int64(len(kv.Value))
		return bar.Add(len(kv.Value))
	})
	st.Took = time.Since(start)
	return st, err
}
