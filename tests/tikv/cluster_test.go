package tikv

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tikv/client-go/v2/config"
	"github.com/tikv/client-go/v2/rawkv"
)

// binDir has the servers, built once for all tests.
var binDir string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "tikv-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	build := exec.Command(
		"go",
		"build",
		"-o",
		dir+"/",
		"./cmd/tinykv-server",
		"./cmd/tinyscheduler",
		"./cmd/tinyctl",
		"./tests/nativeclient",
	)
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the servers: %v\n%s", err, out)
		return 1
	}
	binDir = dir
	return m.Run()
}

// process is one server; its log is kept with a failed test.
type process struct {
	name, addr, log string
	args            []string
	cmd             *exec.Cmd
	ended           chan struct{}
}

func (p *process) start(t *testing.T) {
	t.Helper()
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	p.cmd = exec.Command(p.args[0], p.args[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	// The server must not outlive the test. Pdeathsig is tied to the thread that starts it, which
	// the goroutine keeps.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	ended, cmd, started := make(chan struct{}), p.cmd, make(chan error, 1)
	p.ended = ended
	go func() { // ends with the process
		defer close(ended)
		defer out.Close()
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	require.NoError(t, <-started)
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// cluster is one scheduler and several stores.
type cluster struct {
	scheduler *process
	stores    []*process
}

// ports are those of blocks that this process has to itself, as by the package freeport of the main
// module: the UDP port with the number of the first one says so.
var ports struct {
	sync.Mutex
	blocks []net.PacketConn // open until the process ends
	next   []int
}

// freeAddrs returns addresses that nothing listens on right now. Their ports lie below those that
// the system gives to outgoing connections, which could take them while a server is down.
func freeAddrs(t *testing.T, n int) []string {
	t.Helper()
	ports.Lock()
	defer ports.Unlock()
	var out []string
	for len(out) < n {
		if len(ports.next) == 0 {
			first := 10_000 + 200*rand.IntN(110)
			c, err := net.ListenPacket("udp", fmt.Sprintf("127.0.0.1:%d", first))
			if err != nil {
				continue // of another process
			}
			ports.blocks = append(ports.blocks, c)
			for port := first; port < first+200; port++ {
				ports.next = append(ports.next, port)
			}
		}
		addr := fmt.Sprintf("127.0.0.1:%d", ports.next[0])
		ports.next = ports.next[1:]
		if l, err := net.Listen("tcp", addr); err == nil {
			_ = l.Close()
			out = append(out, addr)
		}
	}
	return out
}

func startCluster(t *testing.T, stores int) *cluster {
	return startClusterWith(t, stores, "http://", nil, nil)
}

// startClusterWith starts a cluster whose servers get further options.
func startClusterWith(t *testing.T, stores int, scheme string, scheduler, store []string) *cluster {
	t.Helper()
	dir := t.TempDir()
	addrs := freeAddrs(t, 2+2*stores)
	c := &cluster{}
	make := func(name, bin, addr string, args ...string) *process {
		p := &process{name: name, addr: addr, log: filepath.Join(dir, name+".log")}
		p.args = append(
			[]string{filepath.Join(binDir, bin), "--data-dir", filepath.Join(dir, name)},
			args...)
		p.start(t)
		t.Cleanup(func() {
			p.kill()
			if log, err := os.ReadFile(p.log); err == nil && t.Failed() {
				t.Logf("%s:\n%s", name, log[max(0, len(log)-4000):])
			}
		})
		return p
	}
	c.scheduler = make("scheduler", "tinyscheduler", addrs[0], append([]string{
		"--name", "scheduler",
		"--client-urls", scheme + addrs[0], "--advertise-client-urls", scheme + addrs[0],
		"--peer-urls", scheme + addrs[1], "--advertise-peer-urls", scheme + addrs[1],
		"--initial-cluster", "scheduler=" + scheme + addrs[1],
	}, scheduler...)...)
	for i := range stores {
		at := addrs[2+2*i:]
		c.stores = append(
			c.stores,
			make(fmt.Sprintf("store-%d", i+1), "tinykv-server", at[0], append([]string{
				"--addr", at[0],
				"--advertise-addr", at[0], "--status-addr", at[1], "--scheduler", scheme + addrs[0],
			}, store...)...),
		)
	}
	for _, p := range append(c.stores, c.scheduler) {
		require.Eventually(t, func() bool {
			conn, err := net.DialTimeout("tcp", p.addr, time.Second)
			if err == nil {
				_ = conn.Close()
			}
			return err == nil
		}, 30*time.Second, 20*time.Millisecond, p.name)
	}
	return c
}

// client is a client of TiKV that knows nothing but the scheduler's address.
func (c *cluster) client(t *testing.T) *rawkv.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cl, err := rawkv.NewClient(ctx, []string{c.scheduler.addr}, config.DefaultConfig().Security)
	require.NoError(t, err)
	t.Cleanup(func() { _ = cl.Close() })
	return cl
}

func bytesOf(list ...string) [][]byte {
	var out [][]byte
	for _, s := range list {
		out = append(out, []byte(s))
	}
	return out
}

func joined(list [][]byte) string {
	var out []string
	for _, b := range list {
		out = append(out, string(b))
	}
	return strings.Join(out, " ")
}
