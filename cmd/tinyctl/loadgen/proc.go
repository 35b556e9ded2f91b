package loadgen

import (
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ticksPerSecond is the unit of /proc's CPU times: USER_HZ, 100 on every Linux port of Go.
const ticksPerSecond = 100

// sample is what processes have used up to a moment. Where there is no /proc, ok is false.
type sample struct {
	at      time.Time
	ok      bool // every server could be read, and there is one
	servers float64
	rss     int64
	written *Written // nil if it is not known
	selfOK  bool
	self    float64
	machine float64 // busy time of all cores
}

func takeSample(pids []int, written func() (*Written, error)) sample {
	s := sample{at: time.Now()}
	if written == nil {
		written = func() (*Written, error) { return writtenBy(pids) }
	}
	if cpu, rss, err := ProcessUsage(pids...); err == nil && len(pids) > 0 {
		s.ok, s.servers, s.rss = true, cpu, rss
		s.written, _ = written() // nil: it is not known
	}
	cpu, _, err := ProcessUsage(os.Getpid())
	busy, merr := machineBusy()
	s.selfOK, s.self, s.machine = err == nil && merr == nil, cpu, busy
	return s
}

// ProcessUsage is the CPU time in seconds that processes have used so far, user and system, and
// their resident memory in bytes, both summed. Linux only; elsewhere it fails.
func ProcessUsage(pids ...int) (cpuSeconds float64, rssBytes int64, err error) {
	for _, pid := range pids {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, 0, err
		}
		cpu, rss, err := parseStat(string(data))
		if err != nil {
			return 0, 0, fmt.Errorf("process %d: %w", pid, err)
		}
		cpuSeconds += cpu
		rssBytes += rss
	}
	return cpuSeconds, rssBytes, nil
}

// parseStat reads fields 14, 15 and 24 of /proc/PID/stat: utime, stime, rss. The second field is
// the command in parentheses, which may hold spaces and parentheses itself.
func parseStat(line string) (cpuSeconds float64, rssBytes int64, err error) {
	const utime, stime, rss = 11, 12, 21 // counted from the third field on
	f := strings.Fields(line[strings.LastIndexByte(line, ')')+1:])
	if len(f) <= rss {
		return 0, 0, fmt.Errorf("stat has %d fields", len(f)+2)
	}
	var n [3]int64
	for i, at := range []int{utime, stime, rss} {
		if n[i], err = strconv.ParseInt(f[at], 10, 64); err != nil {
			return 0, 0, err
		}
	}
	return float64(n[0]+n[1]) / ticksPerSecond, n[2] * int64(os.Getpagesize()), nil
}

// machineBusy is the time in seconds that all cores together were not idle.
func machineBusy() (float64, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	return parseBusy(string(data))
}

func parseBusy(text string) (float64, error) {
	line, _, _ := strings.Cut(text, "\n")
	f := strings.Fields(line)
	if len(f) < 6 || f[0] != "cpu" {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	busy := int64(0)
	for i, v := range f[1:min(len(f), 9)] { // what follows is contained in user
		if i == 3 || i == 4 { // idle, iowait
			continue
		}
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return 0, err
		}
		busy += n
	}
	return float64(busy) / ticksPerSecond, nil
}

// setUsage takes over what was used between two samples.
func (r *Result) setUsage(from, to sample) {
	perKop := func(cpu float64) *float64 {
		if r.Ops == 0 {
			return nil
		}
		v := cpu / float64(r.Ops) * 1000
		return &v
	}
	servers := 0.0
	if from.ok && to.ok {
		servers = to.servers - from.servers
		r.ServerCPUPerKop = perKop(servers)
		rss := to.rss
		r.ServerRSS = &rss
		if from.written != nil && to.written != nil && r.Ops > 0 {
			r.ServerWritten = to.written.since(from.written, float64(r.Ops))
		}
	}
	if from.selfOK && to.selfOK {
		r.ClientCPUPerKop = perKop(to.self - from.self)
		other := max(0,
			(to.machine-from.machine)-servers-(to.self-from.self)) / to.at.Sub(from.at).Seconds()
		r.OtherCPU = &other
	}
}

// ListenerPIDs are the processes of this machine that listen on the given addresses, host:port,
// each once. What is not on this machine, or cannot be seen, is left out.
func ListenerPIDs(addrs []string) []int {
	sockets := map[string]bool{}
	for _, addr := range addrs {
		host, port, err := net.SplitHostPort(addr)
		if err != nil || !isLocal(host) {
			continue
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			continue
		}
		for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
			if data, err := os.ReadFile(table); err == nil {
				for _, inode := range listenInodes(string(data), uint16(n)) {
					sockets["socket:["+inode+"]"] = true
				}
			}
		}
	}
	if len(sockets) == 0 {
		return nil
	}
	var pids []int
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*") // the pattern is valid
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err == nil && sockets[target] {
			if pid, err := strconv.Atoi(strings.Split(fd, "/")[2]); err == nil &&
				!slices.Contains(pids, pid) {
				pids = append(pids, pid)
			}
		}
	}
	slices.Sort(pids)
	return pids
}

// listenInodes finds the sockets that listen on a port in the text of /proc/net/tcp.
func listenInodes(table string, port uint16) []string {
	const listening = "0A"
	want := strings.ToUpper(hex.EncodeToString([]byte{byte(port >> 8), byte(port)}))
	var out []string
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) < 10 || f[3] != listening {
			continue
		}
		if _, p, ok := strings.Cut(f[1], ":"); ok && p == want {
			out = append(out, f[9])
		}
	}
	return out
}

func isLocal(host string) bool {
	ip := net.ParseIP(host)
	if ip == nil {
		return host == "localhost" || host == ""
	}
	if ip.IsLoopback() || ip.IsUnspecified() {
		return true
	}
	addrs, err := net.InterfaceAddrs()
	return err == nil && slices.ContainsFunc(addrs, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		return ok && n.IP.Equal(ip)
	})
}
