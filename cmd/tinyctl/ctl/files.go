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
	"github.com/tinykv/tinykv/kv/storage"
)

// importStats counts what an import or export has done.
type importStats struct {
	Files int64
	Bytes int64
	Took  time.Duration
	// Expired are pairs that had expired, and were left out.
	Expired int64
}

// tellStats ends an import or export: in JSON on standard output, unless the pairs are there, else
// a line beside the progress.
func tellStats(a *app, verb string, s importStats, pairsOnStdout bool) error {
	if a.output == "json" && !pairsOnStdout {
		return a.json(map[string]any{
			"entries": s.Files, "bytes": s.Bytes, "took_seconds": s.Took.Seconds(),
			"expired": s.Expired,
		})
	}
	_, err := fmt.Fprintf(a.stderr, "%s %s\n", verb, s)
	return err
}

func (s importStats) String() string {
	rate := float64(s.Bytes) / max(s.Took.Seconds(), 0.001)
	text := fmt.Sprintf("%d entries, %s in %s (%s/s)", s.Files, humanize.IBytes(uint64(s.Bytes)),
		s.Took.Round(10*time.Millisecond), humanize.IBytes(uint64(rate)))
	if s.Expired > 0 {
		text += fmt.Sprintf(", left out %d that have expired", s.Expired)
	}
	return text
}

func (a *app) importCmd() *cobra.Command {
	dir := &cobra.Command{
		Use:   "dir DIR",
		Short: "Load a tree of files: key = prefix + path below DIR, value = content",
		Args:  args(cobra.ExactArgs(1)),
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
		return tellStats(a, "imported", st, false)
	}
	file := &cobra.Command{
		Use:   "file FILE",
		Short: `Load pairs from JSON lines ({"key":…,"value":…}) or TSV (key<TAB>value); - is standard input`,
		Args:  args(cobra.ExactArgs(1)),
		Long: `A line of JSON may have an "encoding", which counts instead of --encoding, and a time "expires": the key gets what is left
until then as its TTL, and is left out if the time has passed. A file of "export file" has both. Put without a time, a key lives for
ever. TSV has no times.`,
	}
	a.keyFlags(file)
	format := file.Flags().String("format", "",
		"jsonl or tsv (default: by the file's suffix, else jsonl)")
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
	return progressbar.NewOptions64(total, progressbar.OptionSetWriter(out),
		progressbar.OptionSetDescription(what),
		progressbar.OptionShowBytes(bytes), progressbar.OptionThrottle(200*time.Millisecond),
		progressbar.OptionClearOnFinish())
}

func (a *app) importDir(
	ctx context.Context, c *client.Client, dir, prefix string, workers int, quiet bool,
) (importStats, error) {
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
func parallel[T any](
	ctx context.Context, workers int, items []T, do func(context.Context, T) error,
) error {
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
	var batch importBatch
	for line := 1; ; line++ {
		text, rerr := r.ReadBytes('\n')
		if text = bytes.TrimRight(text, "\r\n"); len(text) > 0 {
			p, err := a.parseLine(format, text)
			if err != nil {
				return fmt.Errorf("%s, line %d: %w", path, line, err)
			}
			batch.add(p)
		}
		if batch.full() || rerr != nil {
			if err := batch.put(ctx, c, workers, &st); err != nil {
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
	return tellStats(a, "imported", st, false)
}

// mortalKV is a pair that may expire; a zero time says that it does not.
type mortalKV struct {
	client.KV
	expires time.Time
}

// importBatch are pairs that are put together.
type importBatch struct {
	living []client.KV
	mortal []mortalKV
	size   int // bytes
}

func (b *importBatch) add(p mortalKV) {
	b.size += len(p.Key) + len(p.Value)
	if p.expires.IsZero() {
		b.living = append(b.living, p.KV)
		return
	}
	b.mortal = append(b.mortal, p)
}

func (b *importBatch) full() bool { return b.size > 8<<20 || len(b.living)+len(b.mortal) >= 4096 }

// put sets the pairs, counts them and empties the batch. A pair whose time has come is left out.
func (b *importBatch) put(
	ctx context.Context, c *client.Client, workers int, st *importStats,
) error {
	var expired, expiredBytes atomic.Int64
	err := c.PutAll(ctx, b.living, workers)
	if err == nil {
		err = parallel(ctx, workers, b.mortal, func(ctx context.Context, p mortalKV) error {
			left := p.expires.UnixMilli() - time.Now().UnixMilli()
			if left <= 0 {
				expired.Add(1)
				expiredBytes.Add(int64(len(p.Key) + len(p.Value)))
				return nil
			}
			// Rounded up: a TTL of 0 is none.
			return c.PutTTL(ctx, p.Key, p.Value, min(uint64(left+999)/1000, storage.MaxTTL))
		})
	}
	st.Files += int64(len(b.living)+len(b.mortal)) - expired.Load()
	st.Bytes += int64(b.size) - expiredBytes.Load()
	st.Expired += expired.Load()
	b.living, b.mortal, b.size = b.living[:0], b.mortal[:0], 0
	return err
}

// fileLine is a pair in a file of JSON lines.
type fileLine struct {
	Key   *string `json:"key"`
	Value string  `json:"value"`
	// Encoding is that of key and value.
	Encoding string `json:"encoding,omitempty"`
	// Expires is when the key expires.
	Expires *time.Time `json:"expires,omitempty"`
}

func (a *app) parseLine(format string, text []byte) (mortalKV, error) {
	line := fileLine{Encoding: a.encoding}
	if format == "tsv" {
		k, v, ok := strings.Cut(string(text), "\t")
		if !ok {
			return mortalKV{}, errors.New("no tab between key and value")
		}
		line.Key, line.Value = &k, v
	} else if err := json.Unmarshal(text, &line); err != nil {
		return mortalKV{}, err
	}
	if line.Key == nil {
		return mortalKV{}, errors.New(`no "key"`)
	}
	k, err := decode(line.Encoding, *line.Key)
	if err != nil {
		return mortalKV{}, err
	}
	v, err := decode(line.Encoding, line.Value)
	out := mortalKV{KV: client.KV{Key: k, Value: v}}
	if line.Expires != nil {
		out.expires = *line.Expires
	}
	return out, err
}

func (a *app) exportCmd() *cobra.Command {
	dir := &cobra.Command{
		Use:   "dir DIR",
		Short: "Write each pair whose key begins with the prefix to the file DIR/<rest of the key>",
		Args:  args(cobra.ExactArgs(1)),
	}
	prefix := dir.Flags().String("prefix", "",
		"only keys that begin with this; it is not part of the path")
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
		return tellStats(a, "exported", st, false)
	}
	return group("export", "Write the cluster's pairs to files", dir, exportFileCmd(a))
}

func exportFileCmd(a *app) *cobra.Command {
	file := &cobra.Command{
		Use:   "file FILE",
		Short: "Write pairs as JSON lines, with the times at which they expire; - is standard output",
		Args:  args(cobra.ExactArgs(1)),
		Long: `Each line says how its key and value are encoded. "import file" reads the file as it is. Pairs are read one range after
the other: what is written meanwhile may be in the file or not.`,
	}
	prefix := file.Flags().String("prefix", "", "only keys that begin with this")
	workers := file.Flags().IntP("workers", "w", 32, "concurrent questions for the times")
	file.RunE = func(cmd *cobra.Command, argv []string) error {
		c, err := a.openWith(cmd.Context(), bulkOptions(a.timeout))
		if err != nil {
			return err
		}
		defer c.Close()
		st, err := exportFile(cmd.Context(), a, c, argv[0], *prefix, *workers)
		if err != nil {
			return err
		}
		return tellStats(a, "exported", st, argv[0] == "-")
	}
	return file
}

func exportFile(
	ctx context.Context, a *app, c *client.Client, path, prefix string, workers int,
) (st importStats, err error) {
	start, out := time.Now(), a.stdout
	if path != "-" {
		f, err := os.Create(path)
		if err != nil {
			return st, err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		out = f
	}
	w := bufio.NewWriterSize(out, 1<<20)
	var batch []client.KV
	size := 0
	flush := func() error {
		err := exportPairs(ctx, c, w, batch, workers, &st)
		batch, size = batch[:0], 0
		return err
	}
	err = c.Visit(ctx, []byte(prefix), prefixEnd([]byte(prefix)), 0, func(kv client.KV) error {
		// The pair's memory may be used again after this call.
		batch = append(batch, client.KV{Key: bytes.Clone(kv.Key), Value: bytes.Clone(kv.Value)})
		if size += len(kv.Key) + len(kv.Value); size > 8<<20 || len(batch) >= 4096 {
			return flush()
		}
		return nil
	})
	if err == nil {
		err = flush()
	}
	st.Took = time.Since(start)
	return st, errors.Join(err, w.Flush())
}

// expiry is when a key expires that has so many seconds left. Files know no later time than
// lastExpiry.
func expiry(now time.Time, seconds uint64) time.Time {
	at := time.UnixMilli(now.UnixMilli() + int64(min(seconds, storage.MaxTTL))*1000).UTC()
	if at.After(lastExpiry) {
		return lastExpiry
	}
	return at
}

var lastExpiry = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

// exportPairs asks when the pairs expire and writes them. One that is gone meanwhile is left out.
func exportPairs(
	ctx context.Context, c *client.Client, w io.Writer, batch []client.KV, workers int,
	st *importStats,
) error {
	lines := make([]*fileLine, len(batch))
	places := make([]int, len(batch))
	for i := range places {
		places[i] = i
	}
	err := parallel(ctx, workers, places, func(ctx context.Context, i int) error {
		kv := batch[i]
		seconds, found, err := c.TTL(ctx, kv.Key)
		if err != nil || !found {
			return err
		}
		line := &fileLine{Encoding: "text"}
		if !printable(kv.Key) || !printable(kv.Value) {
			line.Encoding = "hex"
		}
		key := encode(line.Encoding, kv.Key)
		line.Key, line.Value = &key, encode(line.Encoding, kv.Value)
		if seconds > 0 {
			at := expiry(time.Now(), seconds)
			line.Expires = &at
		}
		lines[i] = line
		return nil
	})
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	for i, line := range lines {
		if err != nil {
			return err
		}
		if line == nil {
			st.Expired++
			continue
		}
		err = enc.Encode(line)
		st.Files++
		st.Bytes += int64(len(batch[i].Key) + len(batch[i].Value))
	}
	return err
}

func (a *app) exportDir(
	ctx context.Context, c *client.Client, dir, prefix string, quiet bool,
) (importStats, error) {
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
