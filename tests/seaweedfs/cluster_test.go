package seaweedfs

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
	"github.com/tikv/client-go/v2/txnkv"
)

// binDir has the servers, built once for all tests.
var binDir string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "seaweedfs-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binDir = dir
	builds := []*exec.Cmd{
		exec.Command("go", "build", "-o", dir+"/", "./cmd/tinykv-server", "./cmd/tinyscheduler"),
		exec.Command("go", "build", "-p", "2", "-tags", "tikv", "-o", dir+"/",
			"github.com/seaweedfs/seaweedfs/weed"),
	}
	builds[0].Dir = filepath.Join("..", "..")
	for _, b := range builds {
		if out, err := b.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%v: %v\n%s", b.Args, err, out)
			return 1
		}
	}
	return m.Run()
}

// process is one server; the end of its log is shown with a failed test.
type process struct {
	name, addr, log string
	args            []string
	env             []string
	cmd             *exec.Cmd
	ended           chan struct{}
}

func (p *process) start(t *testing.T) {
	t.Helper()
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	p.cmd = exec.Command(p.args[0], p.args[1:]...)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = filepath.Dir(p.log), out, out
	p.cmd.Env = append(os.Environ(), p.env...)
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

// kill ends the process as kill -9 does.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// serving waits until the process takes connections.
func (p *process) serving(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool {
		conn, err := net.DialTimeout("tcp", p.addr, time.Second)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	}, 60*time.Second, 20*time.Millisecond, p.name)
}

// cluster is a cluster of this project in mode txn, and SeaweedFS on it: one master, one volume
// server, two filers that share the cluster.
type cluster struct {
	dir       string
	scheduler *process
	stores    []*process
	master    *process
	volume    *process
	filers    []*process
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

func port(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }

// launch starts a process that ends with the test.
func (c *cluster) launch(t *testing.T, name, bin, addr string, args ...string) *process {
	t.Helper()
	p := &process{name: name, addr: addr, log: filepath.Join(c.dir, name+".log")}
	p.args = append([]string{filepath.Join(binDir, bin)}, args...)
	// SeaweedFS looks for files of configuration at home, and keeps data there.
	p.env = []string{"HOME=" + c.dir}
	p.start(t)
	t.Cleanup(func() {
		p.kill()
		if log, err := os.ReadFile(p.log); err == nil && t.Failed() {
			t.Logf("%s:\n%s", name, log[max(0, len(log)-4000):])
		}
	})
	return p
}

func startCluster(t *testing.T, stores int) *cluster {
	t.Helper()
	c := &cluster{dir: t.TempDir()}
	addrs := freeAddrs(t, 2+2*stores)
	c.scheduler = c.launch(t, "scheduler", "tinyscheduler", addrs[0],
		"--data-dir", filepath.Join(c.dir, "scheduler"), "--mode", "txn", "--name", "scheduler",
		"--client-urls", "http://"+addrs[0], "--advertise-client-urls", "http://"+addrs[0],
		"--peer-urls", "http://"+addrs[1], "--advertise-peer-urls", "http://"+addrs[1],
		"--initial-cluster", "scheduler=http://"+addrs[1])
	for i := range stores {
		at, name := addrs[2+2*i:], fmt.Sprintf("store-%d", i+1)
		c.stores = append(c.stores, c.launch(t, name, "tinykv-server", at[0],
			"--data-dir", filepath.Join(c.dir, name), "--addr", at[0], "--advertise-addr", at[0],
			"--status-addr", at[1], "--scheduler", "http://"+c.scheduler.addr))
	}
	for _, p := range append(c.stores, c.scheduler) {
		p.serving(t)
	}
	c.split(t)
	c.startSeaweed(t)
	return c
}

// split cuts the cluster into 8 regions. The filer's keys begin with a hash of their directory, so
// that all get keys.
func (c *cluster) split(t *testing.T) {
	t.Helper()
	cl, err := txnkv.NewClient([]string{c.scheduler.addr})
	require.NoError(t, err)
	defer cl.Close()
	var keys [][]byte
	for b := 0x20; b < 0x100; b += 0x20 {
		keys = append(keys, []byte{byte(b)})
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err = cl.SplitRegions(ctx, keys, false, nil) // it may name but some, if it was asked again
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		regions, err := cl.GetPDClient().ScanRegions(ctx, nil, nil, 0)
		return err == nil && len(regions) == len(keys)+1
	}, time.Minute, 20*time.Millisecond)
}

// startSeaweed starts SeaweedFS with its defaults, but for where it lies and listens, and that it
// reports to nobody.
func (c *cluster) startSeaweed(t *testing.T) {
	t.Helper()
	addrs := freeAddrs(t, 8)
	at := func(i int) []string {
		return []string{
			"-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-port=" + port(addrs[2*i]),
			"-port.grpc=" + port(addrs[2*i+1]),
		}
	}
	weed := func(name, conf, command string, i int, args ...string) *process {
		dir := filepath.Join(c.dir, name)
		require.NoError(t, os.MkdirAll(dir, 0o755))
		args = append([]string{"-logtostderr", "-config_dir=" + dir, command},
			append(at(i), args...)...)
		if conf != "" {
			require.NoError(t, os.WriteFile(filepath.Join(dir, "filer.toml"), []byte(conf), 0o600))
		}
		return c.launch(t, name, "weed", addrs[2*i], args...)
	}
	c.master = weed("master", "", "master", 0,
		"-mdir="+filepath.Join(c.dir, "master"), "-peers=none", "-telemetry=false",
		"-volumeSizeLimitMB=64")
	c.master.serving(t)
	master := addrs[0] + "." + port(addrs[1])
	c.volume = weed("volume", "", "volume", 1, "-dir="+filepath.Join(c.dir, "volume"), "-max=30",
		"-master="+master)
	c.volume.serving(t)
	for i, onePhase := range []bool{true, false} {
		name := fmt.Sprintf("filer-%d", i+1)
		c.filers = append(c.filers, weed(name, fmt.Sprintf(
			"[tikv]\nenabled = true\npdaddrs = %q\nenable_1pc = %v\n", c.scheduler.addr, onePhase,
		), "filer", 2+i, "-master="+master, "-maxMB=1",
			"-localSocket="+filepath.Join(c.dir, name+".sock")))
	}
	for _, f := range c.filers {
		f.serving(t)
	}
}
