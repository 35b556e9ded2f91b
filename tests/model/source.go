package model

func (r *source) up() bool { return r.mode == normal || r.mode == merging }

// ownTermApplied tells whether a leader has applied an entry of its term.
func (r *source) ownTermApplied() bool { return r.log[r.applied-1].term() == r.term }

// waits tells whether an entry of a kind is in the log and not applied.
func (r *source) waits(kind entry) bool {
	for _, e := range r.log[r.applied:r.len] {
		if e.kind() == kind {
			return true
		}
	}
	return false
}

func (r *source) append(kind entry, arg uint8) bool {
	if r.len == logRoom {
		return false
	}
	r.log[r.len] = newEntry(kind, r.term, arg)
	r.len++
	return true
}

// follow ends a leadership, and what a leader knows.
func (r *source) follow() { r.lead, r.proof, r.ready = false, 0, false }

// end makes the replica a tombstone.
func (r *source) end(mode mode) { *r = source{mode: mode, tried: r.tried} }

// elect makes i leader of the next term by the vote of j. The third store keeps its term, and may
// be a leader still.
func (s *state) elect(i, j int) bool {
	a, b := &s.s[i], &s.s[j]
	if !a.up() || !b.up() {
		return false
	}
	ta, tb := a.log[a.len-1].term(), b.log[b.len-1].term()
	if ta < tb || ta == tb && a.len < b.len {
		return false
	}
	s.term++
	a.follow()
	b.follow()
	a.term, b.term, a.lead = s.term, s.term, true
	return a.append(noop, 0)
}

// replicate brings one entry of leader l to j, or its term.
func (s *state) replicate(l, j int) bool {
	a, b := &s.s[l], &s.s[j]
	if !a.lead || !a.up() || !b.up() || a.term < b.term {
		return false
	}
	n := uint8(0)
	for n < a.len && n < b.len && a.log[n] == b.log[n] {
		n++
	}
	if n == a.len {
		if a.term == b.term {
			return false
		}
	} else {
		b.log[n] = a.log[n]
		b.len = n + 1
		for k := b.len; k < logRoom; k++ {
			b.log[k] = 0
		}
	}
	if a.term > b.term {
		b.follow()
		b.term = a.term
	}
	return true
}

// apply applies the next committed entry at i.
func (m *model) apply(s *state, i int) bool {
	r := &s.s[i]
	n := r.applied
	if !r.up() || n >= r.len || n >= s.commits || r.log[n] != s.commit[n] {
		return false
	}
	r.applied++
	e := r.log[n]
	switch e.kind() {
	case write:
		if r.mode == merging && m.wrong == writesAfterPrepare {
			s.fault = faultServes // it takes effect, and is acknowledged
		}
	case prepare:
		if r.mode != normal {
			break
		}
		r.mode = merging
		r.tried++
		s.try[r.tried-1].p, s.try[r.tried-1].t0 = n+1, e.arg()
		r.unpublished = m.wrong == ackBeforePublish
		r.unsynced = m.wrong == ackBeforeSync
	case rollback:
		if r.mode == merging && r.tried == e.arg() {
			r.mode, r.proof, r.ready = normal, 0, false
			r.unpublished, r.unsynced = false, false
		}
	}
	return true
}

func (s *state) publish(i int) bool {
	was := s.s[i].unpublished
	s.s[i].unpublished = false
	return was
}

// crash loses what i has in memory: its leadership and what it knows as a leader. It stands for a
// leader that resigns, too.
func (m *model) crash(s *state, i int) bool {
	r := &s.s[i]
	forgets := m.wrong == forgottenAtRestart && r.mode == merging
	if !r.up() || !r.lead && !r.unsynced && !r.unpublished && !forgets {
		return false
	}
	r.follow()
	r.unpublished = false
	if r.unsynced {
		r.mode, r.unsynced = normal, false
		r.applied = s.try[r.tried-1].p - 1
		r.tried--
	}
	if forgets {
		r.mode = normal
	}
	return true
}

func (m *model) propose(s *state, i int) bool {
	r := &s.s[i]
	if !r.lead || r.mode != normal || s.used.writes == m.limits.writes {
		return false
	}
	s.used.writes++
	return r.append(write, r.tried)
}

// prepare proposes PrepareMerge with the epoch that T has on the leader's store, where T is on the
// stores of S.
func (m *model) prepare(s *state, i int) bool {
	r, t := &s.s[i], &s.t[i]
	if !r.lead || r.mode != normal || r.tried >= m.tries || r.waits(prepare) || t.kind != alive {
		return false
	}
	picture := m.picture(s, t.applied)
	if picture.members() != 1<<voters-1 || picture.joined || picture.ids[i] != t.id {
		return false
	}
	return r.append(prepare, t.applied)
}

func (m *model) sendReady(s *state, i int) bool {
	r := &s.s[i]
	if !r.lead || r.mode != merging {
		return false
	}
	a := &s.try[r.tried-1]
	if !r.ownTermApplied() && m.wrong != readyBeforeOwnTerm ||
		r.waits(rollback) && m.wrong != readyWithRollback {
		return false
	}
	if !m.allAcked(s, int(r.tried)-1) || a.ready && (r.ready || !m.direct) {
		return false
	}
	a.ready = true
	r.ready = m.direct
	return true
}

func (m *model) allAcked(s *state, a int) bool {
	acks := s.try[a].acks
	switch m.wrong {
	case acksOfQuorum:
		return acks&(acks-1) != 0
	case acksOfOther:
		for i := range s.try {
			acks |= s.try[i].acks
		}
	}
	return acks == 1<<voters-1
}

// ask has leader i ask store j whether S is frozen there, after an epoch of T beyond T0 was seen.
func (m *model) ask(s *state, i, j int) bool {
	r, other := &s.s[i], &s.s[j]
	if !r.lead || r.mode != merging || other.mode != merging || other.tried != r.tried {
		return false
	}
	a := &s.try[r.tried-1]
	if !a.beyond || a.refused || r.proof>>j&1 != 0 {
		return false
	}
	r.proof |= 1 << j
	return true
}

func (m *model) rollback(s *state, i int) bool {
	r := &s.s[i]
	if !r.lead || r.mode != merging || r.waits(rollback) || !m.mayRollBack(s, r) {
		return false
	}
	return r.append(rollback, r.tried)
}

func (m *model) mayRollBack(s *state, r *source) bool {
	a := &s.try[r.tried-1]
	if a.refused || r.proof == 1<<voters-1 {
		return true
	}
	own := r.log[a.p-1].term() == r.term
	if m.direct && (own || m.wrong == directInOtherTerm) &&
		(!r.ready || m.wrong == directAfterReady) {
		return true
	}
	switch m.wrong {
	case rollbackWithoutProof:
		return true
	case rollbackOnNotProposed:
		return a.ready && s.len == a.t0 // asked, T has done nothing yet
	case proofOfOldAcks:
		return a.beyond && a.acks == 1<<voters-1
	}
	return false
}

// destroy ends a frozen replica whose region went into T without it.
func (m *model) destroy(s *state, i int) bool {
	r := &s.s[i]
	if r.mode != merging {
		return false
	}
	a, t := &s.try[r.tried-1], &s.t[i]
	answer := m.answer(s, i, int(r.tried)-1)
	ok := false
	switch {
	case answer == listed:
		ok = m.wrong != noExitListed
	case t.kind == none || t.kind == tomb:
		ok = a.merged && m.wrong != noExitAbsent
	case answer == unknown:
		ok = a.merged
	case t.kind == alive && t.applied <= a.t0:
		ok = a.merged && m.wrong == destroyedAtT0
	}
	if m.wrong == destroyedBeyond && t.kind == alive && t.applied > a.t0 {
		ok = true
	}
	if ok {
		r.end(gone)
	}
	return ok
}
