package model

// broken is the invariant that a state breaks, empty if it breaks none.
func (m *model) broken(s *state) string {
	if s.fault != 0 {
		return faults[s.fault]
	}
	for a := range s.try {
		at := s.committed(a)
		if at == 0 {
			continue
		}
		if s.try[a].rolled {
			return "M2"
		}
		before, after := m.picture(s, at-1), m.picture(s, at)
		if after.version <= before.version || after.version <= m.sourceVersion(uint8(a+1)) {
			return "M4"
		}
		if s.served() {
			return "M1"
		}
	}
	for i := range s.s {
		if broken := s.endsRight(i); broken != "" {
			return broken
		}
	}
	return ""
}

// served tells whether a leader of S may serve: it is the last one elected, has applied an entry of
// its term, and is not frozen in what it has published.
func (s *state) served() bool {
	for i := range s.s {
		r := &s.s[i]
		if r.lead && r.term == s.term && r.ownTermApplied() && (r.mode == normal || r.unpublished) {
			return true
		}
	}
	return false
}

// endsRight judges a replica of S that has ended.
func (s *state) endsRight(i int) string {
	r, t := &s.s[i], &s.t[i]
	if r.up() {
		return ""
	}
	at := s.committed(int(r.tried) - 1)
	behind := t.kind == alive && t.applied < at
	switch {
	case at == 0:
		return "M5"
	case behind && r.mode == merged:
		return "M3" // it stands before T's replica has the range
	case behind:
		return "M6"
	}
	return ""
}

// stuck tells, as "End", if no merge that is under way in a state can end any more: all stores are
// up, whatever was on its way is lost, everybody helps. It is tried twice, with replicas of T that
// get its log, and with ones that get raft snapshots only.
func (m *model) stuck(from *state) string {
	for _, bySnapshot := range []bool{false, true} {
		s := *from
		for i := range s.s {
			if s.s[i].up() {
				s.s[i].follow()
			}
		}
		for a := range s.try {
			at := &s.try[a]
			at.acks, at.ready, at.refused, at.merged, at.beyond = 0, false, false, false, false
		}
		m.settle(&s)
		h := helper{m: m, s: &s, bySnapshot: bySnapshot}
		for n := 0; h.round() && m.broken(&s) == ""; n++ {
			if n == 200 {
				return "End"
			}
		}
		if broken := m.broken(&s); broken != "" {
			return broken
		}
		if !s.ended() {
			return "End"
		}
	}
	return ""
}

// ended: no replica of S is frozen, and either all of them have ended or none.
func (s *state) ended() bool {
	count := 0
	for i := range s.s {
		if s.s[i].mode == merging {
			return false
		}
		if !s.s[i].up() {
			count++
		}
	}
	return count == 0 || count == voters
}

// helper brings a merge to its end.
type helper struct {
	m          *model
	s          *state
	bySnapshot bool
}

// round takes the first step that helps; false if there is none.
func (h *helper) round() bool {
	for _, do := range []func() bool{h.targets, h.leader, h.replicas, h.decide, h.ends} {
		if do() {
			h.m.settle(h.s)
			return true
		}
	}
	return false
}

func (h *helper) targets() bool {
	for x := range h.s.t {
		if h.m.removeByMessage(h.s, x, h.s.applied) || h.m.create(h.s, x) ||
			h.m.install(h.s, x, h.s.applied) {
			return true
		}
	}
	// Somebody applies what nobody has applied yet; the others then get snapshots.
	for x := range h.s.t {
		if (!h.bySnapshot || h.s.t[x].applied == h.s.applied) && h.m.applyTarget(h.s, x) {
			return true
		}
	}
	return false
}

func (h *helper) leader() bool {
	for i := range h.s.s {
		if h.s.s[i].lead && h.s.s[i].term == h.s.term {
			return false
		}
	}
	for i := range h.s.s {
		for j := range h.s.s {
			if i != j && h.s.elect(i, j) {
				return true
			}
		}
	}
	return false
}

func (h *helper) replicas() bool {
	for i := range h.s.s {
		if h.m.apply(h.s, i) {
			return true
		}
	}
	for i := range h.s.s {
		for j := range h.s.s {
			if i != j && h.s.s[i].term == h.s.term && h.s.replicate(i, j) {
				return true
			}
		}
	}
	return false
}

func (h *helper) decide() bool {
	for i := range h.s.s {
		if h.s.s[i].term == h.s.term && (h.m.sendReady(h.s, i) || h.m.rollback(h.s, i)) {
			return true
		}
	}
	for a := range attempts {
		if h.m.commitMerge(h.s, a) || h.m.refuseMerge(h.s, a) {
			return true
		}
	}
	for i := range h.s.s {
		for j := range h.s.s {
			if h.s.s[i].term == h.s.term && h.m.ask(h.s, i, j) {
				return true
			}
		}
	}
	return false
}

func (h *helper) ends() bool {
	for i := range h.s.s {
		if h.m.destroy(h.s, i) {
			return true
		}
	}
	return false
}
