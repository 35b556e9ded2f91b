package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/health"
)

// alivePath is where a member tells the leader that it lives.
const alivePath = "/internal/alive"

const (
	probeInterval = 2 * time.Second
	// probeFailures in a row make a member dead.
	probeFailures = 2
	maxAliveBody  = 1 << 12
)

// aliveJSON is a sign of life.
type aliveJSON struct {
	Version string `json:"version"`
	Clock   int64  `json:"clock"` // nanoseconds since 1970
}

// probed is what the leader knows of another member.
type probed struct {
	heard    time.Time // the last answer; the first try if there was none
	failures int       // in a row
	why      string    // of the last failure
	version  string
	skew     core.Skew
}

func (s *Server) serveAlive(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, aliveJSON{Version: s.cfg.Version, Clock: time.Now().UnixNano()})
}

// memberName is the member's name; one that was added and has not started yet has none.
func memberName(m memberInfo) string { return cmp.Or(m.Name, utoa(m.MemberId)) }

// memberLocked describes a member for the judgement.
func (k *healthKeeper) memberLocked(m memberInfo) health.Member {
	out := health.Member{Name: memberName(m)}
	if m.MemberId == k.s.self.MemberId {
		out.Version = k.s.cfg.Version
		return out
	}
	p := k.mu.members[m.MemberId]
	out.Version, out.Skew = p.version, p.skew
	if p.failures >= probeFailures {
		out.Silent, out.Why = p.heard, p.why
	}
	return out
}

// watchMembers asks the other members for signs of life until ctx, the leadership, ends.
func (s *Server) watchMembers(ctx context.Context) {
	pause := min(probeInterval, s.cfg.TTL()/2)
	for sleep(ctx, pause) {
		s.probeMembers(ctx, pause)
	}
}

// probeMembers asks all at once and returns when all have answered or the time is up.
func (s *Server) probeMembers(ctx context.Context, timeout time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var wg sync.WaitGroup
	there := map[uint64]bool{}
	for _, m := range s.members() {
		if m.MemberId == s.self.MemberId {
			continue
		}
		there[m.MemberId] = true
		wg.Add(1)
		go func() { // ends with ctx; waited for below
			defer wg.Done()
			began := time.Now()
			alive, err := s.askAlive(ctx, m)
			s.health.probed(m.MemberId, began, time.Now(), alive, err)
		}()
	}
	wg.Wait()
	s.health.keepMembers(there)
}

// askAlive asks one member.
func (s *Server) askAlive(ctx context.Context, m memberInfo) (aliveJSON, error) {
	var out aliveJSON
	if len(m.ClientUrls) == 0 {
		return out, errors.New("it has not started yet")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.ClientUrls[0]+alivePath, nil)
	if err != nil {
		return out, err
	}
	s.signInternal(req)
	resp, err := s.transport.RoundTrip(req)
	if err != nil {
		return out, err
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAliveBody))
	switch {
	case err != nil:
		return out, err
	case resp.StatusCode == http.StatusNotFound:
		return out, nil // an older version: it lives
	case resp.StatusCode != http.StatusOK:
		return out, fmt.Errorf("it answers %s", resp.Status)
	}
	return out, json.Unmarshal(data, &out)
}

// probed notes what came of a question.
func (k *healthKeeper) probed(id uint64, asked, answered time.Time, alive aliveJSON, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.mu.members == nil {
		k.mu.members = map[uint64]probed{}
	}
	p := k.mu.members[id]
	if p.heard.IsZero() {
		p.heard = asked
	}
	if err != nil {
		p.failures++
		p.why = err.Error()
	} else {
		p.failures, p.heard, p.version, p.skew = 0, answered, alive.Version, core.Skew{}
		if alive.Clock != 0 {
			clock := time.Unix(0, alive.Clock)
			p.skew = core.Skew{Low: clock.Sub(answered), High: clock.Sub(asked), Known: true}
		}
	}
	k.mu.members[id] = p
}

// keepMembers forgets the members that are none any more.
func (k *healthKeeper) keepMembers(there map[uint64]bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for id := range k.mu.members {
		if !there[id] {
			delete(k.mu.members, id)
		}
	}
}
