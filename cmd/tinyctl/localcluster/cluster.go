// Package localcluster runs a whole TinyKV cluster as processes on this machine: for the
// playground, the demo, benchmarks and end-to-end tests.
package localcluster

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/tinykv/tinykv/pkg/freeport"
	"github.com/tinykv/tinykv/pkg/security"
)

// Options say what to run. Zero values mean defaults.
type Options struct {
	// BinDir holds tinykv-server and tinyscheduler; default: the directory of the running program.
	BinDir string
	// Dir keeps data, logs and configuration; it must exist.
	Dir        string
	Stores     int // default 3
	Schedulers int // default 1
	// BasePort begins the ports: clients of scheduler i at +2i, its peers at +2i+1, store j at
	// +100+2j and its status at +101+2j. 0 picks free ports.
	BasePort int
	// StoreConfig and SchedulerConfig are TOML text for the servers.
	StoreConfig     string
	SchedulerConfig string
	// StoreMemory bounds the engine of each store, in bytes; 0 leaves it to the stores, as if each
	// had the machine.
	StoreMemory uint64
	// TLS secures all ports, with certificates in the directory certs; those that are there already
	// are used.
	TLS bool
	// OnExit receives each process that ended without being asked to.
	OnExit func(p *Process, err error)
	// Advertise may put something between the processes: given a process and one of the addresses
	// it listens on, it returns the address that all others use. Nil gives them the address itself.
	Advertise func(process, listen string) (string, error)
}

// Cluster is a set of processes; each of them may be used by any goroutine.
type Cluster struct {
	opts       Options
	certs      certificates
	token      string
	id         uint64 // of the cluster, once a scheduler of this Cluster has told it
	Schedulers []*Process
	Stores     []*Process
}

// Process is one server. Its log is in LogFile.
type Process struct {
	Name    string
	Addr    string // where clients connect, as told to them
	Listen  string // where the process listens for them; the same unless Options.Advertise is set
	Status  string // status address of a store
	LogFile string
	DataDir string
	Env     []string // added to the environment
	bin     string
	args    []string
	// further arguments: how a scheduler finds the others, which cluster a store is of
	first  []string
	ports  []string // all that it listens on
	token  string   // by which it is recognised; see identity.go
	tls    *security.Identity
	onExit func(*Process, error)

	mu      sync.Mutex
	cmd     *exec.Cmd
	done    chan struct{}
	asked   bool
	exitErr error
}

// New lays the cluster out: ports, directories, configuration files. It starts nothing.
func New(o Options) (*Cluster, error) {
	if o.Stores == 0 {
		o.Stores = 3
	}
	if o.Schedulers == 0 {
		o.Schedulers = 1
	}
	if o.BinDir == "" {
		exe, err := os.Executable()
		if err != nil {
			return nil, err
		}
		o.BinDir = filepath.Dir(exe)
	}
	for _, name := range []string{"tinykv-server", "tinyscheduler"} {
		if _, err := os.Stat(filepath.Join(o.BinDir, name)); err != nil {
			return nil, fmt.Errorf("%s is not beside tinyctl in %s; run make first", name, o.BinDir)
		}
	}
	c := &Cluster{opts: o, token: rand.Text()}
	if o.TLS {
		var err error
		if c.certs, err = makeCertificates(filepath.Join(o.Dir, "certs")); err != nil {
			return nil, err
		}
	}
	ports, err := choosePorts(o)
	if err != nil {
		return nil, err
	}
	return c, c.layOut(ports)
}

type portPlan struct {
	client, peer, store, status []int
}

func choosePorts(o Options) (portPlan, error) {
	var p portPlan
	if o.BasePort > 0 {
		for i := range o.Schedulers {
			p.client, p.peer = append(p.client, o.BasePort+2*i), append(p.peer, o.BasePort+2*i+1)
		}
		for j := range o.Stores {
			p.store, p.status = append(p.store, o.BasePort+100+2*j),
				append(p.status, o.BasePort+101+2*j)
		}
		return p, nil
	}
	free, err := freeport.Find(2*o.Schedulers + 2*o.Stores)
	if err != nil {
		return p, err
	}
	p.client, free = free[:o.Schedulers], free[o.Schedulers:]
	p.peer, free = free[:o.Schedulers], free[o.Schedulers:]
	p.store, p.status = free[:o.Stores], free[o.Stores:]
	return p, nil
}

func (c *Cluster) layOut(ports portPlan) error {
	o := &c.opts
	kvConf, schedConf := filepath.Join(o.Dir, "tinykv-server.toml"),
		filepath.Join(o.Dir, "tinyscheduler.toml")
	if err := os.WriteFile(kvConf, []byte(o.StoreConfig), 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(schedConf, []byte(o.SchedulerConfig), 0o600); err != nil {
		return err
	}
	var members []string
	for i, port := range ports.client {
		name := fmt.Sprintf("scheduler-%d", i+1)
		p, err := c.process(name, "tinyscheduler", freeport.Addr(port), "", "--name", name,
			"--config",
			schedConf)
		if err != nil {
			return err
		}
		peer, err := c.advertise(name, freeport.Addr(ports.peer[i]))
		if err != nil {
			return err
		}
		scheme := c.Scheme()
		members = append(members, fmt.Sprintf("%s=%s%s", name, scheme, peer))
		p.args = append(p.args, "--client-urls", scheme+p.Listen, "--advertise-client-urls",
			scheme+p.Addr,
			"--peer-urls", scheme+freeport.Addr(ports.peer[i]), "--advertise-peer-urls",
			scheme+peer)
		p.args = append(p.args, c.certs.args("--cacert")...)
		p.tls = c.certs.client
		p.ports = append(p.ports, freeport.Addr(ports.peer[i]))
		c.Schedulers = append(c.Schedulers, p)
	}
	for _, p := range c.Schedulers {
		p.first = []string{"--initial-cluster", strings.Join(members, ",")}
	}
	for j, port := range ports.store {
		p, err := c.process(fmt.Sprintf("store-%d", j+1), "tinykv-server", freeport.Addr(port),
			freeport.Addr(ports.status[j]),
			"--config", kvConf, "--addr", freeport.Addr(port), "--status-addr",
			freeport.Addr(ports.status[j]),
			"--scheduler", strings.Join(c.Endpoints(), ","))
		if err != nil {
			return err
		}
		p.args = append(p.args, "--advertise-addr", p.Addr)
		if o.StoreMemory > 0 {
			p.args = append(p.args, "--memory", fmt.Sprintf("%dB", o.StoreMemory))
		}
		p.args = append(p.args, c.certs.args("--ca")...)
		c.Stores = append(c.Stores, p)
	}
	return nil
}

func (c *Cluster) advertise(process, listen string) (string, error) {
	if c.opts.Advertise == nil {
		return listen, nil
	}
	return c.opts.Advertise(process, listen)
}

func (c *Cluster) process(name, bin, listen, status string, args ...string) (*Process, error) {
	addr, err := c.advertise(name, listen)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(c.opts.Dir, name)
	p := &Process{
		Name: name, Addr: addr, Listen: listen, Status: status,
		bin:  filepath.Join(c.opts.BinDir, bin),
		args: append(args, "--data-dir", dir), LogFile: dir + ".log", DataDir: dir,
		onExit: c.opts.OnExit,
		ports:  []string{listen}, token: c.token,
	}
	if status != "" {
		p.ports = append(p.ports, status)
	}
	return p, nil
}

// Command describes a server of another kind to run like those of a cluster: its log and its data
// are name.log and name in dir, and clients connect to addr. It starts nothing.
func Command(dir, name, bin, addr string, args ...string) *Process {
	return &Process{
		Name: name, Addr: addr, Listen: addr, bin: bin, args: args,
		LogFile: filepath.Join(dir, name+".log"), DataDir: filepath.Join(dir, name),
	}
}

// Endpoints is the address list of the placement service.
func (c *Cluster) Endpoints() []string {
	var out []string
	for _, p := range c.Schedulers {
		addr := p.Addr
		if c.opts.TLS {
			addr = c.Scheme() + addr
		}
		out = append(out, addr)
	}
	return out
}

// Scheme is that of all URLs: http:// or https://.
func (c *Cluster) Scheme() string {
	if c.opts.TLS {
		return "https://"
	}
	return "http://"
}

// Rejoin makes the next start of a scheduler that does not run join the others as a new member,
// which its data must not be in the way of.
func (c *Cluster) Rejoin(p *Process) {
	var others []string
	for _, other := range c.Schedulers {
		if other != p {
			others = append(others, c.Scheme()+other.Addr)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.first = []string{"--join", strings.Join(others, ",")}
}

// Recover makes the next start of a scheduler that does not run take over the cluster of a recovery
// file. Its data directory must be empty then.
func (p *Process) Recover(file string) { p.first = []string{"--recover", file} }

// Processes lists the schedulers, then the stores.
func (c *Cluster) Processes() []*Process {
	return append(append([]*Process{}, c.Schedulers...), c.Stores...)
}

// Start starts all processes that do not run and waits until each accepts connections. Ports that
// somebody else has are refused before anything is started, schedulers of somebody else before a
// store is.
func (c *Cluster) Start(ctx context.Context) error {
	if err := c.checkPorts(); err != nil {
		return err
	}
	for i, group := range [][]*Process{c.Schedulers, c.Stores} {
		for _, p := range group {
			if p.Running() {
				continue
			}
			if err := p.Start(); err != nil {
				return err
			}
		}
		for _, p := range group {
			if err := p.WaitReady(ctx); err != nil {
				return err
			}
		}
		if i == 0 {
			if err := c.identify(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// Stop ends all processes, stores first; what does not end in time is killed.
func (c *Cluster) Stop() {
	for _, group := range [][]*Process{c.Stores, c.Schedulers} {
		var wg sync.WaitGroup
		for _, p := range group {
			wg.Add(1)
			// Ends when the process has.
			go func() { defer wg.Done(); p.Stop(15 * time.Second) }()
		}
		wg.Wait()
	}
}

// Start runs the process, appending to its log.
func (p *Process) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		return fmt.Errorf("%s is running", p.Name)
	}
	out, err := os.OpenFile(p.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	cmd := exec.Command(p.bin, append(slices.Clone(p.args), p.first...)...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(cmd.Environ(), p.Env...)
	if p.token != "" {
		cmd.Env = append(cmd.Env, instanceEnv+"="+p.token)
	}
	// A group of its own: Ctrl-C in the terminal reaches only us, and we stop the servers in order.
	// If we die, they must not stay behind.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	p.done = make(chan struct{})
	done := p.done
	// Owned by the process. Pdeathsig is tied to the thread that starts the child, so this
	// goroutine keeps its thread until the child has ended.
	go func() {
		defer close(done)
		defer out.Close()
		lockThread(func() {
			err := cmd.Start()
			started <- err
			if err == nil {
				p.ended(cmd, cmd.Wait())
			}
		})
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	p.cmd, p.asked, p.exitErr = cmd, false, nil
	return nil
}

func (p *Process) ended(cmd *exec.Cmd, err error) {
	p.mu.Lock()
	asked := p.asked
	p.exitErr = err
	if p.cmd == cmd {
		p.cmd = nil
	}
	p.mu.Unlock()
	if !asked && p.onExit != nil {
		p.onExit(p, err)
	}
}

// PID is the process id, 0 if it does not run.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// Running tells whether the process runs.
func (p *Process) Running() bool { return p.PID() != 0 }

// Signal sends a signal; SIGKILL counts as asked to end.
func (p *Process) Signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return fmt.Errorf("%s does not run", p.Name)
	}
	if sig == syscall.SIGKILL || sig == syscall.SIGTERM {
		p.asked = true
	}
	return p.cmd.Process.Signal(sig)
}

// Kill ends the process with SIGKILL and waits.
func (p *Process) Kill() {
	if p.Signal(syscall.SIGKILL) == nil {
		<-p.done
	}
}

// Stop ends the process with SIGTERM, and with SIGKILL after the timeout.
func (p *Process) Stop(timeout time.Duration) {
	if p.Signal(syscall.SIGTERM) != nil {
		return
	}
	select {
	case <-p.done:
	case <-time.After(timeout):
		p.Kill()
	}
}

// End sends a signal, waits for the process to end, and returns its exit code.
func (p *Process) End(sig syscall.Signal, timeout time.Duration) (int, error) {
	p.mu.Lock()
	cmd, done := p.cmd, p.done
	p.asked = true
	p.mu.Unlock()
	if cmd == nil {
		return 0, fmt.Errorf("%s does not run", p.Name)
	}
	if err := cmd.Process.Signal(sig); err != nil {
		return 0, err
	}
	select {
	case <-done:
		return cmd.ProcessState.ExitCode(), nil
	case <-time.After(timeout):
		p.Kill()
		return 0, fmt.Errorf("%s did not end within %s of %s", p.Name, timeout, sig)
	}
}

// WaitReady returns once the process accepts connections, or with the reason why it ended.
func (p *Process) WaitReady(ctx context.Context) error {
	for {
		conn, err := net.DialTimeout("tcp", p.Listen, time.Second)
		if err == nil {
			_ = conn.Close()
			return nil
		}
		if !p.Running() {
			return fmt.Errorf("%s ended: %s", p.Name, p.LastWords())
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not accept connections at %s: %w", p.Name, p.Listen,
				ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// LastWords is the last line of the process's log.
func (p *Process) LastWords() string {
	data, err := os.ReadFile(p.LogFile)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	return string(lines[len(lines)-1])
}

// ExitText says how the process ended.
func ExitText(err error) string {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.String()
	}
	if err != nil {
		return err.Error()
	}
	return "exit status 0"
}
