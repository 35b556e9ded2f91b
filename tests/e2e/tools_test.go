package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	rpb "google.golang.org/grpc/reflection/grpc_reflection_v1"

	"github.com/tinykv/tinykv/pkg/freeport"
)

// output collects what a process prints. Safe for concurrent use.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

func (o *output) waitFor(t *testing.T, text string) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		if !strings.Contains(o.String(), text) {
			return fmt.Errorf("no %q in: %s", text, o)
		}
		return nil
	})
}

// freeBase finds a base port such that the ports of a small playground are free.
func freeBase(t *testing.T) int {
	t.Helper()
	base, err := freeport.Run(120)
	require.NoError(t, err)
	return base
}

// TestPlayground: the banner comes, its commands work, a child that dies is named, Ctrl-C ends
// everything.
func TestPlayground(t *testing.T) {
	base := freeBase(t)
	cmd := exec.CommandContext(t.Context(), filepath.Join(binDir, "tinyctl"), "playground", "--tmp",
		"--kv", "2", "--scheduler", "1", "--base-port", strconv.Itoa(base))
	out := new(output)
	cmd.Stdout, cmd.Stderr = out, out
	require.NoError(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	out.waitFor(t, "Ctrl-C stops everything.")
	sched := fmt.Sprintf("127.0.0.1:%d", base)
	require.Contains(t, out.String(), "export TINYCTL_SCHEDULER="+sched)
	tinyctl := func(args ...string) string {
		c := exec.CommandContext(t.Context(), filepath.Join(binDir, "tinyctl"), args...)
		c.Env = append(os.Environ(), "TINYCTL_SCHEDULER="+sched)
		text, err := c.CombinedOutput()
		require.NoError(t, err, "%s", text)
		return string(text)
	}
	tinyctl("put", "hello", "world")
	require.Equal(t, "world\n", tinyctl("get", "hello"))
	require.Contains(t, tinyctl("store", "list"), "Up")
	// A replica that is added meanwhile has a raft snapshot of after the comparison, and does not
	// answer.
	require.Eventually(t, func() bool {
		c := exec.CommandContext(t.Context(), filepath.Join(binDir, "tinyctl"), "-s", sched,
			"check", "consistency", "--wait", "5s")
		text, err := c.CombinedOutput()
		return err == nil && strings.Contains(string(text), "1 of 1 regions have equal replicas.")
	}, time.Minute, time.Millisecond)
	// as many replicas as there are stores; the stores may not have reported yet
	eventually(t, 20*time.Second, func() error {
		c := exec.CommandContext(t.Context(), filepath.Join(binDir, "tinyctl"), "-s", sched,
			"status")
		if text, err := c.CombinedOutput(); err != nil ||
			!strings.Contains(string(text), "All 1 regions have 2 replicas and a leader.") {
			return fmt.Errorf("%w: %s", err, text)
		}
		return nil
	})

	// Another playground and a demo-like cluster on the same ports are refused, and this one does
	// not notice.
	again, err := exec.CommandContext(t.Context(), filepath.Join(binDir, "tinyctl"), "playground",
		"--tmp", "--kv", "3",
		"--base-port", strconv.Itoa(base)).CombinedOutput()
	require.Error(t, err, "%s", again)
	require.Contains(t, string(again),
		sched+", where scheduler-1 should listen, is in use by another process")
	require.NotContains(t, tinyctl("store", "list"), "127.0.0.1:"+strconv.Itoa(base+104),
		"a third store")
	require.Equal(t, "world\n", tinyctl("get", "hello"))

	// Its data lies where the banner says; a store's lock file tells nothing of its process, /proc
	// does.
	victim := childNamed(t, cmd.Process.Pid, "store-2")
	require.NoError(t, syscall.Kill(victim, syscall.SIGKILL))
	out.waitFor(t, "store-2 ended by itself (signal: killed)")
	require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	select {
	case err := <-ended:
		require.NoError(t, err, "%s", out)
	case <-time.After(30 * time.Second):
		_ = cmd.Process.Kill()
		t.Fatalf("did not end: %s", out)
	}
	require.Contains(t, out.String(), "Stopped.")
	for _, name := range []string{"store-1", "scheduler-1"} {
		require.Zero(t, childNamed(t, cmd.Process.Pid, name), "%s is still there", name)
	}
}

// childNamed finds a child process by a part of its command line; 0 if there is none.
func childNamed(t *testing.T, parent int, part string) int {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	require.NoError(t, err)
	for _, dir := range dirs {
		line, err1 := os.ReadFile(filepath.Join(dir, "cmdline"))
		stat, err2 := os.ReadFile(filepath.Join(dir, "stat"))
		if err1 != nil || err2 != nil || !strings.Contains(string(line), part) {
			continue
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		pid, err := strconv.Atoi(filepath.Base(dir))
		require.NoError(t, err)
		if len(fields) > 1 && fields[1] == strconv.Itoa(parent) {
			return pid
		}
	}
	return 0
}

// TestTinyKVSpellings: a store started as users of TinyKV do; health, reflection and the status
// port.
func TestTinyKVSpellings(t *testing.T) {
	c := start(t, 1)
	ports, err := freeport.Find(2)
	require.NoError(t, err)
	addr, status := fmt.Sprintf("127.0.0.1:%d", ports[0]), fmt.Sprintf("127.0.0.1:%d", ports[1])
	cmd := exec.CommandContext(t.Context(), filepath.Join(binDir, "tinykv-server"), "-scheduler",
		c.Endpoints()[0], "-addr", addr,
		"-path", filepath.Join(t.TempDir(), "data"), "-loglevel", "warn", "--status-addr", status)
	out := new(output)
	cmd.Stdout, cmd.Stderr = out, out
	require.NoError(t, cmd.Start())
	defer func() {
		require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
		require.NoError(t, cmd.Wait(), "%s", out)
	}()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer conn.Close()
	eventually(t, 20*time.Second, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		resp, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
		if err == nil && resp.Status != healthpb.HealthCheckResponse_SERVING {
			err = fmt.Errorf("status %s", resp.Status)
		}
		return err
	})
	stream, err := rpb.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	require.NoError(t, err)
	ask := func(req *rpb.ServerReflectionRequest) *rpb.ServerReflectionResponse {
		require.NoError(t, stream.Send(req))
		resp, err := stream.Recv()
		require.NoError(t, err)
		return resp
	}
	list := ask(&rpb.ServerReflectionRequest{
		MessageRequest: &rpb.ServerReflectionRequest_ListServices{},
	})
	require.Contains(t, list.String(), "tinykvpb.TinyKv")
	file := ask(&rpb.ServerReflectionRequest{
		MessageRequest: &rpb.ServerReflectionRequest_FileContainingSymbol{
			FileContainingSymbol: "tinykvpb.TinyKv",
		},
	})
	require.NotEmpty(t, file.GetFileDescriptorResponse().GetFileDescriptorProto(), file.String())
	require.NoError(t, stream.CloseSend())

	for path, want := range map[string]string{
		"/status": `"store_id"`, "/metrics": "tikv_engine_write_stalls_total",
		"/config": "[raftstore]", "/health": "ok",
		"/regions": "[", "/debug/pprof/cmdline": "tinykv-server",
	} {
		resp, err := http.Get("http://" + status + path)
		require.NoError(t, err)
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, resp.StatusCode, path)
		require.Contains(t, string(body), want, path)
	}
}

// TestConfigurationIsShown: samples are valid configurations, --config-check and --version end at
// once.
func TestConfigurationIsShown(t *testing.T) {
	for _, bin := range []string{"tinykv-server", "tinyscheduler"} {
		run := func(args ...string) string {
			out, err := exec.CommandContext(t.Context(), filepath.Join(binDir, bin),
				args...).Output()
			require.NoError(t, err, "%s %v", bin, args)
			return string(out)
		}
		path := filepath.Join(t.TempDir(), "sample.toml")
		require.NoError(t, os.WriteFile(path, []byte(run("--print-sample-config")), 0o600))
		run("--config", path, "--config-check")
		require.Contains(t, run("--version"), "Go")
		require.Contains(t, run("-V"), bin)
	}
}

// TestStandalone: an unreplicated store serves without a placement service.
func TestStandalone(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "c.toml")
	require.NoError(t, os.WriteFile(conf, []byte("[storage]\nraft = false\n"), 0o600))
	ports, err := freeport.Find(1)
	require.NoError(t, err)
	addr := fmt.Sprintf("127.0.0.1:%d", ports[0])
	cmd := exec.CommandContext(t.Context(), filepath.Join(binDir, "tinykv-server"), "--config",
		conf, "--addr", addr, "--status-addr", "127.0.0.1:0", "--data-dir",
		filepath.Join(dir, "data"))
	out := new(output)
	cmd.Stdout, cmd.Stderr = out, out
	require.NoError(t, cmd.Start())
	out.waitFor(t, "is ready")
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, cmd.Wait(), "%s", out)
}
