package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/cmd/tinyctl/localcluster"
)

// foreignPage tries, from the origin that serves it, to read and to change things at the addresses
// in TARGETS, in all the ways that a page has without the help of its reader, and writes down what
// it got. A read is one if the script sees the body.
const foreignPage = `<!doctype html><title>foreign</title><body><pre id="out"></pre><script>
const targets=TARGETS, out={read:[],tried:0};
async function read(what,f){out.tried++;try{const t=await f();if(t)out.read.push(what+': '+String(t).slice(0,80))}catch(e){}}
async function text(url,o){const r=await fetch(url,o);return r.type==='opaque'?'':r.status+' '+await r.text()}
(async()=>{
 for(const t of targets){
  for(const path of t.reads||[]){
   await read('fetch '+t.base+path,()=>text(t.base+path));
   await read('fetch with credentials '+t.base+path,()=>text(t.base+path,{credentials:'include'}));
   await read('no-cors '+t.base+path,()=>text(t.base+path,{mode:'no-cors'}));
  }
  for(const c of t.changes||[]){
   for(const type of ['text/plain','application/x-www-form-urlencoded','application/json']){
    for(const mode of ['cors','no-cors']){
     await read(mode+' '+c.method+' '+t.base+c.path,()=>text(t.base+c.path,{method:c.method,mode,body:c.body,headers:{'Content-Type':type},credentials:'include'}));
    }
   }
   await read('with the proof '+t.base+c.path,()=>text(t.base+c.path,{method:c.method,body:c.body,headers:{'Tinykv-Request':'1'}}));
   navigator.sendBeacon(t.base+c.path,c.body);
   const f=document.createElement('form');f.method='post';f.enctype='text/plain';f.action=t.base+c.path;f.target='frame';
   const i=document.createElement('input');i.name=c.body;f.append(i);document.body.append(f);
   const frame=document.createElement('iframe');frame.name='frame';document.body.append(frame);
   await new Promise(done=>{frame.onload=done;f.submit();setTimeout(done,2000)});
   await read('frame of '+t.base+c.path,()=>frame.contentDocument&&frame.contentDocument.body.innerText);
   f.remove();frame.remove();
  }
 }
 document.getElementById('out').textContent=JSON.stringify(out);
 await fetch('/report',{method:'POST',body:JSON.stringify(out)});
})();
</script></body>`

type pageTarget struct {
	Base    string           `json:"base"`
	Reads   []string         `json:"reads"`
	Changes []map[string]any `json:"changes"`
}

type pageReport struct {
	Read  []string `json:"read"`
	Tried int      `json:"tried"`
}

// browser is the path of a headless Chromium, or "". In Debian's whole Chromium the page was seen
// to report nothing.
func browser() string {
	path, err := exec.LookPath("chromium-headless-shell")
	if err != nil {
		return ""
	}
	return path
}

// visit has a browser open a page of another origin, which attacks the targets, and returns what it
// got.
func visit(t *testing.T, chromium string, targets []pageTarget) pageReport {
	t.Helper()
	list, err := json.Marshal(targets)
	require.NoError(t, err)
	reports := make(chan pageReport, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = fmt.Fprint(w, strings.Replace(foreignPage, "TARGETS", string(list), 1))
	})
	mux.HandleFunc("POST /report", func(_ http.ResponseWriter, r *http.Request) {
		var got pageReport
		if json.NewDecoder(r.Body).Decode(&got) == nil {
			reports <- got
		}
	})
	site := httptest.NewServer(mux)
	defer site.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, chromium, "--headless", "--no-sandbox", "--disable-gpu",
		"--disable-dev-shm-usage",
		"--remote-debugging-port=0", "--user-data-dir="+t.TempDir(), site.URL+"/")
	// Its helper processes end with it: all are in a group of their own.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	require.NoError(t, cmd.Start())
	defer func() { cancel(); _ = cmd.Wait() }() // it does not end by itself
	select {
	case got := <-reports:
		return got
	case <-ctx.Done():
		t.Fatal("the page reported nothing")
		return pageReport{}
	}
}

// TestForeignPageInABrowser: a page of another origin, in a real browser, reads nothing and changes
// nothing at the HTTP ports of the placement service and of a store, without a token and with one.
func TestForeignPageInABrowser(t *testing.T) {
	chromium := browser()
	if chromium == "" {
		t.Skip("no chromium-headless-shell on PATH")
	}
	// What is open to all is read: else the test could not fail.
	open := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "*")
		_, _ = fmt.Fprint(w, "open")
	}))
	defer open.Close()
	for _, token := range []string{"", "secret"} {
		t.Run("token="+token, func(t *testing.T) {
			conf := ""
			if token != "" {
				conf = "[api]\ntoken = \"" + token + "\"\n"
			}
			c := startBrowsed(t, conf)
			before := configOf(t, c)
			peer, promote := peerOf(t, c)
			got := visit(t, chromium, []pageTarget{
				{Base: open.URL, Reads: []string{"/"}},
				{
					Base: "http://" + c.Schedulers[0].Addr,
					Reads: []string{
						"/api/v1/stores", "/api/v1/config", "/metrics", "/ui/", "/pd/api/v1/stores",
						"/debug/pprof/cmdline",
					},
					Changes: []map[string]any{
						{
							"method": "POST", "path": "/api/v1/config",
							"body": `{"schedule":{"max-store-down-time":"11m"}}`,
						},
						{"method": "POST", "path": "/api/v1/leader/resign", "body": ""},
						{"method": "POST", "path": "/ui/login", "body": "token=secret"},
						{
							"method": "POST", "path": "/v3/kv/deleterange",
							"body": `{"key":"AA==","range_end":"AA=="}`,
						},
					},
				},
				{
					Base: "http://" + c.Stores[0].Status,
					Reads: []string{
						"/config", "/status", "/metrics", "/regions", "/debug/pprof/cmdline",
					},
					Changes: []map[string]any{{"method": "POST", "path": "/config", "body": "{}"}},
				},
				{
					Base:    peer,
					Reads:   []string{"/members", "/version", "/raft/probing"},
					Changes: []map[string]any{{"method": "POST", "path": promote, "body": ""}},
				},
			})
			require.Greater(t, got.Tried, 60)
			require.Len(t, got.Read, 1, "only what is open to all: %q", got.Read)
			require.Contains(t, got.Read[0], open.URL)
			require.Equal(t, before, configOf(t, c), "nothing was changed")
			// Reads in three ways; changes in six, with a header (where the browser asks first), by
			// a beacon, which may be under way, and by a form.
			const atPeer = 3*3 + 6 + 1 + 1 + 1
			require.GreaterOrEqual(t, refusedAtPeerPort(t, c), atPeer-1)
		})
	}
}

func startBrowsed(t *testing.T, conf string) *localcluster.Cluster {
	t.Helper()
	c, err := localcluster.New(localcluster.Options{
		BinDir: binDir, Dir: t.TempDir(), Stores: 1, Schedulers: 1, StoreConfig: fastStores,
		SchedulerConfig: conf,
		OnExit: func(p *localcluster.Process, err error) {
			t.Errorf("%s ended by itself (%s): %s", p.Name, localcluster.ExitText(err),
				p.LastWords())
		},
	})
	require.NoError(t, err)
	t.Cleanup(c.Stop)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	require.NoError(t, c.Start(ctx))
	return c
}

// peerOf is the URL of the scheduler's peer port, and the path by which etcd promotes its member.
func peerOf(t *testing.T, c *localcluster.Cluster) (url, promote string) {
	t.Helper()
	var got struct {
		Members []struct {
			ID       json.Number `json:"id"`
			PeerURLs []string    `json:"peer_urls"`
		} `json:"members"`
	}
	text := pageOf(t, "http://"+c.Schedulers[0].Addr+"/api/v1/members")
	require.NoError(t, json.Unmarshal([]byte(text), &got))
	require.Len(t, got.Members, 1)
	return got.Members[0].PeerURLs[0], "/members/promote/" + got.Members[0].ID.String()
}

// refusedAtPeerPort is how many requests the scheduler's peer port has refused.
func refusedAtPeerPort(t *testing.T, c *localcluster.Cluster) (n int) {
	t.Helper()
	for line := range strings.Lines(pageOf(t, "http://"+c.Schedulers[0].Addr+"/metrics")) {
		value, ok := strings.CutPrefix(line, "tinykv_peer_port_refused_requests_total ")
		if ok {
			_, err := fmt.Sscan(value, &n)
			require.NoError(t, err)
		}
	}
	return n
}

func configOf(t *testing.T, c *localcluster.Cluster) string {
	t.Helper()
	return pageOf(t, "http://"+c.Schedulers[0].Addr+"/api/v1/config")
}

func pageOf(t *testing.T, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return string(text)
}
