package seaweedfs

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// tree is what is to be in the filers: by its path, the seed of each file, of which its content is
// made. A file that moves keeps it.
type tree map[string]uint64

// content is made of a seed: mostly small files, some of several chunks.
func content(seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 7))
	size := r.IntN(20000)
	if seed%97 == 0 {
		size = 2<<20 + r.IntN(1<<20)
	}
	out := make([]byte, size)
	for i := 0; i < len(out); i += 8 {
		v := r.Uint64()
		for j := i; j < min(i+8, len(out)); j++ {
			out[j] = byte(v >> (8 * (j - i)))
		}
	}
	return out
}

func seedOf(name string, version int) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s %d", name, version)
	return h.Sum64()
}

// listings are the names in each directory of a tree, sorted; those of directories end with a
// slash.
func (tr tree) listings(root string) map[string][]string {
	sets := map[string]map[string]bool{root: {}}
	for name := range tr {
		for leaf := path.Base(name); name != root; leaf = path.Base(name) + "/" {
			name = path.Dir(name)
			if sets[name] == nil {
				sets[name] = map[string]bool{}
			}
			sets[name][leaf] = true
		}
	}
	out := map[string][]string{}
	for dir, set := range sets {
		out[dir] = []string{}
		for leaf := range set {
			out[dir] = append(out[dir], leaf)
		}
		slices.Sort(out[dir])
	}
	return out
}

// under are the names of a directory's files, at any depth.
func (tr tree) under(dir string) (out []string) {
	for name := range tr {
		if strings.HasPrefix(name, dir+"/") {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// move has a directory and all in it be at another place.
func (tr tree) move(from, to string) {
	for _, name := range tr.under(from) {
		tr[to+strings.TrimPrefix(name, from)] = tr[name]
		delete(tr, name)
	}
}

// filer is one over HTTP, as curl would use it. Safe for concurrent use.
type filer struct {
	addr   string
	client *http.Client
}

func newFiler(addr string) *filer {
	return &filer{
		addr,
		&http.Client{
			Timeout: 90 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 16},
		},
	}
}

// do sends a request; the answer is one of 200 to 299, or an error.
func (f *filer) do(method, name, query string, body []byte, header ...string) ([]byte, error) {
	u := url.URL{Scheme: "http", Host: f.addr, Path: name, RawQuery: query}
	req, err := http.NewRequestWithContext(context.Background(), method, u.String(),
		bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = &statusError{method, name, resp.StatusCode, string(out)}
	}
	return out, err
}

// statusError is an answer that is no success.
type statusError struct {
	method, name string
	status       int
	text         string
}

func (e *statusError) Error() string {
	return fmt.Sprintf("%s %s: %d %s", e.method, e.name, e.status, e.text)
}

func (f *filer) put(name string, data []byte) error {
	_, err := f.do(http.MethodPut, name, "", data, "Content-Type", "application/octet-stream")
	return err
}

func (f *filer) move(from, to string) error {
	_, err := f.do(http.MethodPost, to, "mv.from="+url.QueryEscape(from), nil)
	return err
}

func (f *filer) remove(name string) error {
	_, err := f.do(http.MethodDelete, name, "recursive=true", nil)
	return err
}

// list lists a directory, by pages.
func (f *filer) list(dir string, page int) (names []string, err error) {
	names = []string{}
	for last := ""; ; {
		out, err := f.do(http.MethodGet, dir+"/",
			fmt.Sprintf("limit=%d&lastFileName=%s", page, url.QueryEscape(last)), nil,
			"Accept", "application/json")
		if err != nil {
			return nil, err
		}
		var got struct {
			Entries []struct {
				FullPath string
				Mode     uint32
			}
			LastFileName string
		}
		if err := json.Unmarshal(out, &got); err != nil {
			return nil, fmt.Errorf("%s: %w: %.200s", dir, err, out)
		}
		for _, e := range got.Entries {
			name := path.Base(e.FullPath)
			if e.Mode&(1<<31) != 0 {
				name += "/"
			}
			names = append(names, name)
		}
		if len(got.Entries) < page {
			slices.Sort(names) // directories would come where their name has no slash
			return names, nil
		}
		last = got.LastFileName
	}
}

// check compares every listing and every byte of a tree with what a filer has.
func (f *filer) check(t *testing.T, root string, want tree, page int) {
	t.Helper()
	listings := want.listings(root)
	for dir, names := range listings {
		got, err := f.list(dir, page)
		require.NoError(t, err)
		require.Equal(t, names, got, dir)
	}
	inParallel(t, slices.Collect(keysOf(want)), func(name string) error {
		got, err := f.do(http.MethodGet, name, "", nil)
		if err == nil && !bytes.Equal(got, content(want[name])) {
			err = fmt.Errorf("%s has %d bytes, which are not the %d that were put", name, len(got),
				len(content(want[name])))
		}
		return err
	})
}
