package model

// model is the protocol with limits of what may happen, and perhaps one rule changed.
type model struct {
	terms   uint8 // of S
	tries   uint8 // merges of the pair
	limits  used
	list    int  // merges that T remembers
	outside bool // T may have a replica on the fourth store
	// the leader whose term proposed P may roll back at once, before it has sent Ready
	direct   bool
	versionS uint8
	versionT uint8
	wrong    variant
}

func (m *model) first() state {
	var s state
	for i := range s.s {
		s.s[i] = source{term: 1, len: 1, applied: 1}
		s.s[i].log[0] = newEntry(noop, 1, 0)
		s.t[i] = target{kind: alive}
	}
	s.s[0].lead = true
	s.term = 1
	s.commit[0], s.commits = s.s[0].log[0], 1
	return s
}

// successors calls emit with every state that one step leads to.
func (m *model) successors(s *state, emit func(step, *state)) {
	try := func(by step, do func(n *state) bool) {
		n := *s
		if do(&n) {
			m.settle(&n)
			emit(by, &n)
		}
	}
	for i := range s.s {
		m.sourceSteps(i, try)
	}
	for x := range s.t {
		m.targetSteps(x, s, try)
	}
	m.logSteps(s, try)
}

func (m *model) sourceSteps(i int, try func(step, func(*state) bool)) {
	for j := range voters {
		if i == j {
			continue
		}
		try(step{"elect, vote of", i, j}, func(n *state) bool {
			return n.term < m.terms && n.elect(i, j)
		})
		try(step{"replicate", i, j}, func(n *state) bool { return n.replicate(i, j) })
	}
	for j := range voters {
		try(step{"second question", i, j}, func(n *state) bool { return m.ask(n, i, j) })
	}
	try(step{"apply of S", i, -1}, func(n *state) bool { return m.apply(n, i) })
	try(step{"crash", i, -1}, func(n *state) bool { return m.crash(n, i) })
	try(step{"publish", i, -1}, func(n *state) bool { return n.publish(i) })
	try(step{"propose write", i, -1}, func(n *state) bool { return m.propose(n, i) })
	try(step{"propose PrepareMerge", i, -1}, func(n *state) bool { return m.prepare(n, i) })
	try(step{"Ready", i, -1}, func(n *state) bool { return m.sendReady(n, i) })
	try(step{"propose RollbackMerge", i, -1}, func(n *state) bool { return m.rollback(n, i) })
	try(step{"destroy S", i, -1}, func(n *state) bool { return m.destroy(n, i) })
}

func (m *model) targetSteps(x int, s *state, try func(step, func(*state) bool)) {
	try(step{"apply of T", x, -1}, func(n *state) bool { return m.applyTarget(n, x) })
	try(step{"create T", x, -1}, func(n *state) bool { return m.create(n, x) })
	for j := uint8(1); j <= s.applied; j++ {
		try(step{"T removed by message of", x, int(j)}, func(n *state) bool {
			return m.removeByMessage(n, x, j)
		})
		try(step{"raft snapshot of T", x, int(j)}, func(n *state) bool {
			return m.install(n, x, j)
		})
	}
}

// settle carries out what may as well happen at once: a message that was never received is one that
// is not acted upon.
func (m *model) settle(s *state) {
	s.settleCommit()
	for i := range s.s {
		r := &s.s[i]
		if r.mode == merged {
			s.try[r.tried-1].merged = true
		}
		if r.mode == merging && (!r.unpublished || m.wrong == ackBeforePublish) {
			s.try[r.tried-1].acks |= 1 << i
		}
	}
	for a := range s.try {
		if s.try[a].p == 0 {
			continue
		}
		for x := range s.t {
			m.settleAnswer(s, x, a)
		}
	}
}

func (m *model) settleAnswer(s *state, x, a int) {
	a0 := &s.try[a]
	if m.wrong == earlierTombstone && s.t[x].kind == tomb {
		a0.beyond = true
	}
	switch m.answer(s, x, a) {
	case nothing:
		return
	case refused:
		a0.refused = true
	}
	a0.beyond = true
}

// settleCommit commits what a quorum has. An entry that two replicas have, of the term of a leader
// of then, is in the logs of all later leaders, whatever those two have learnt since.
func (s *state) settleCommit() {
	for i := range s.s {
		r := &s.s[i]
		if !r.lead || !r.up() {
			continue
		}
		for n := r.len; n > s.commits; n-- {
			if r.log[n-1].term() == r.term && s.holders(n, r.log[n-1]) >= 2 {
				for k := s.commits; k < n; k++ {
					s.commit[k] = r.log[k]
					if e := r.log[k]; e.kind() == rollback {
						s.try[e.arg()-1].rolled = true
					}
				}
				s.commits = n
			}
		}
	}
}

func (s *state) holders(n uint8, e entry) (count int) {
	for i := range s.s {
		if r := &s.s[i]; r.up() && r.len >= n && r.log[n-1] == e {
			count++
		}
	}
	return count
}
