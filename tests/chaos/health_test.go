package chaos

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tinykv/tinykv/scheduler/server/health"
)

// healthLimit is how soon after the faults have ended all must be well.
const healthLimit = 30 * time.Second

// report asks the placement service for the state and the conditions as "code subject", and behind
// them what is not known.
func (h *history) report() (health.State, []string, error) {
	var r health.Report
	if err := h.get("/health", &r); err != nil {
		return health.Unknown, nil, err
	}
	var out []string
	for _, c := range r.Conditions {
		out = append(out, c.Key())
	}
	if r.Incomplete != "" {
		out = append(out, "incomplete: "+r.Incomplete)
	}
	return r.Health, out, nil
}

// checkHealth is called when all faults have ended, while clients go on: soon all is well. Then it
// kills a store and looks whether that is said, and starts it again.
func (h *history) checkHealth() {
	h.awaitHealthy("after the faults")
	p := h.c.Stores[h.seed%uint64(len(h.c.Stores))]
	var store uint64
	h.eventually(healthLimit, func() error {
		addrs, err := h.stores()
		for id, addr := range addrs {
			if addr == p.Addr {
				store = id
			}
		}
		if store == 0 {
			err = errors.Join(err, fmt.Errorf("no store at %s", p.Addr))
		}
		return err
	})
	h.busy.Lock()
	defer h.busy.Unlock()
	p.Kill()
	h.awaitSilent(store)
	h.start(p)
	h.awaitHealthy("after a store was killed and started again")
}

// awaitSilent returns when the report names a store that is dead, and says that not all is well.
func (h *history) awaitSilent(store uint64) {
	h.eventually(healthLimit, func() error {
		state, conditions, err := h.report()
		want := fmt.Sprintf("%s store %d", health.StoreSilent, store)
		if err == nil && (state == health.OK || !slices.Contains(conditions, want)) {
			err = fmt.Errorf("store %d is dead, and the health is %s: %s", store, state,
				strings.Join(conditions, ", "))
		}
		return err
	})
}

func (h *history) awaitHealthy(when string) {
	began := time.Now()
	h.eventually(healthLimit, func() error {
		state, conditions, err := h.report()
		if err == nil && state != health.OK {
			err = fmt.Errorf("the health %s is %s: %s", when, state, strings.Join(conditions, ", "))
		}
		return err
	})
	h.t.Logf("healthy %s within %s", when, time.Since(began).Round(100*time.Millisecond))
}
