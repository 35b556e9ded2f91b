package model

// change is an entry of T's log that changes its epoch: kind and, in three bits, the store or the
// attempt.
type change uint8

const (
	split    change = (iota + 1) << 3 // elsewhere in T's range
	back                              // at the border, after the merge: T no longer has S's range
	other                             // another source went into T
	removed                           // argument: store
	added                             // argument: store
	commit                            // argument: attempt; CommitMerge
	refusing                          // argument: attempt; RefuseMerge
)

func (c change) kind() change { return c & 0x38 }
func (c change) arg() uint8   { return uint8(c) & 7 }

func newChange(kind change, arg uint8) change { return kind | change(arg) }

// absent is the id of a store that is no member of T.
const absent = 15

// picture is the state of T's region after a part of its log.
type picture struct {
	version uint8
	changes uint8 // conf version
	ids     [stores]uint8
	joined  bool
	// list has the last merges: attempts, and 0 for other sources; floor is the version of the
	// newest one dropped.
	list  [4]struct{ attempt, version uint8 }
	count int
	floor uint8
}

func (p *picture) members() (mask uint8) {
	for x, id := range p.ids {
		if id != absent {
			mask |= 1 << x
		}
	}
	return mask
}

// picture replays T's log up to index n.
func (m *model) picture(s *state, n uint8) picture { return m.pictureFrom(s, 0, n) }

// pictureFrom knows the merges after index base only.
func (m *model) pictureFrom(s *state, base, n uint8) picture {
	p := picture{version: m.versionT, ids: [stores]uint8{3: absent}}
	for k := range n {
		c := s.log[k]
		switch c.kind() {
		case split, refusing:
			p.version++
		case back:
			p.version++
			p.joined = false
		case other:
			p.version++
			m.remember(&p, 0, k >= base)
		case removed:
			p.changes++
			p.ids[c.arg()] = absent
		case added:
			p.changes++
			p.ids[c.arg()] = k + 1
		case commit:
			p.version = m.joinedVersion(p.version, c.arg())
			p.joined = true
			m.remember(&p, c.arg(), k >= base)
		}
	}
	return p
}

// sourceVersion is S's version while it is frozen by an attempt: each prepare and each rollback add
// one.
func (m *model) sourceVersion(attempt uint8) uint8 { return m.versionS + 2*attempt - 1 }

func (m *model) joinedVersion(version, attempt uint8) uint8 {
	v := max(version, m.sourceVersion(attempt))
	if m.wrong != versionOfMax {
		v++
	}
	return v
}

func (m *model) remember(p *picture, attempt uint8, known bool) {
	if !known {
		return
	}
	if p.count == m.list {
		p.floor = p.list[0].version
		copy(p.list[:], p.list[1:])
		p.count--
	}
	p.list[p.count].attempt, p.list[p.count].version = attempt, p.version
	p.count++
}

// answer is what a store's T says about an attempt.
type answer uint8

const (
	nothing answer = iota // T there is at T0 or older, or was never initialized
	listed
	refused
	unknown
)

// answer is what T's replica or tombstone on store x says about attempt a.
func (m *model) answer(s *state, x, a int) answer {
	t, t0 := &s.t[x], s.try[a].t0
	epoch := t.applied
	if t.kind == tomb {
		epoch = t.epoch
	} else if t.kind != alive {
		return nothing
	}
	if epoch <= t0 {
		return nothing
	}
	p := m.pictureFrom(s, t.base, t.applied)
	for _, of := range p.list[:p.count] {
		if of.attempt == uint8(a+1) {
			return listed
		}
	}
	was := m.picture(s, t0)
	if p.floor > was.version && m.wrong != floorIgnored ||
		t.told && m.wrong != floorOfMessageIgnored {
		return unknown
	}
	return refused
}

// applyTarget applies the next entry at x. That it may still have it is assumed of every replica.
func (m *model) applyTarget(s *state, x int) bool {
	t := &s.t[x]
	if t.kind != alive || t.applied >= s.len {
		return false
	}
	c := s.log[t.applied]
	t.applied++
	s.applied = max(s.applied, t.applied)
	switch {
	case c.kind() == removed && int(c.arg()) == x:
		t.kind, t.epoch = tomb, t.applied
	case c.kind() == commit:
		if x >= voters || s.s[x].mode != merging || s.s[x].tried != c.arg() {
			s.fault = faultMerges
			return true
		}
		s.s[x].end(merged)
	}
	return true
}

// removeByMessage ends a replica of T that gets the message that it is no member at index j.
func (m *model) removeByMessage(s *state, x int, j uint8) bool {
	t := &s.t[x]
	if t.kind != alive && t.kind != blank || j <= t.applied || j < t.id {
		return false
	}
	if p := m.picture(s, j); p.ids[x] == t.id {
		return false
	}
	if t.kind == blank {
		t.id = unknownID
	}
	t.kind, t.epoch, t.told = tomb, j, true
	return true
}

// create makes an uninitialized replica of T at x, which was added there.
func (m *model) create(s *state, x int) bool {
	t := &s.t[x]
	if t.kind != none && t.kind != tomb {
		return false
	}
	p := m.picture(s, s.applied)
	id := p.ids[x]
	if id == absent || id == 0 || t.kind == tomb && t.id != unknownID && id <= t.id {
		return false
	}
	if t.kind == tomb && t.epoch >= id {
		return false // the tombstone is newer
	}
	*t = target{kind: blank, id: id}
	return true
}

// install has x take a raft snapshot of T at index j, built by any replica that has ever been
// there.
func (m *model) install(s *state, x int, j uint8) bool {
	t := &s.t[x]
	if t.kind != alive && t.kind != blank || t.kind == alive && j <= t.applied {
		return false
	}
	p := m.picture(s, j)
	if p.ids[x] != t.id || j < t.id {
		return false
	}
	if x < voters && p.joined && s.s[x].up() {
		r := &s.s[x]
		if r.mode != merging || p.version <= m.sourceVersion(r.tried) || m.wrong == noTakeover {
			return false
		}
		r.end(merged)
		if m.wrong == takeoverInTwo {
			return true // the second batch is another step
		}
	}
	t.kind, t.applied = alive, j
	if m.wrong == listNotInSnapshot {
		t.base = j
	}
	return true
}

// logSteps append to T's log.
func (m *model) logSteps(s *state, try func(step, func(*state) bool)) {
	if s.len == targetRoom {
		return
	}
	p := m.picture(s, s.len)
	limited := func(op string, of func(*used) *uint8, limit uint8, c change, arg int) {
		try(step{"T: " + op, arg, -1}, func(n *state) bool {
			count := of(&n.used)
			if *count == limit {
				return false
			}
			*count++
			return n.appendTarget(newChange(c, uint8(max(arg, 0))))
		})
	}
	limited("split", func(u *used) *uint8 { return &u.splits }, m.limits.splits, split, -1)
	limited("other source", func(u *used) *uint8 { return &u.sources }, m.limits.sources, other, -1)
	if p.joined {
		limited("split back", func(u *used) *uint8 { return &u.backs }, m.limits.backs, back, -1)
	}
	members := p.members()
	for x := range stores {
		switch {
		case members>>x&1 == 0 && (x < voters || m.outside):
			limited("add", func(u *used) *uint8 { return &u.adds }, m.limits.adds, added, x)
		case members>>x&1 == 1 && members&(members-1) != 0:
			limited("remove", func(u *used) *uint8 {
				return &u.removes
			}, m.limits.removes, removed, x)
		}
	}
	for a := range attempts {
		try(step{"T: CommitMerge", a + 1, -1}, func(n *state) bool { return m.commitMerge(n, a) })
		try(step{"T: RefuseMerge", a + 1, -1}, func(n *state) bool { return m.refuseMerge(n, a) })
	}
}

func (s *state) appendTarget(c change) bool {
	if s.len == targetRoom {
		return false
	}
	s.log[s.len] = c
	s.len++
	return true
}

// commitMerge appends CommitMerge, proposed by a leader of T that was at T0 and had heard Ready. It
// may be late in T's log: then it has no effect, and is not kept.
func (m *model) commitMerge(s *state, a int) bool {
	at := &s.try[a]
	if !at.ready || s.committed(a) != 0 || !m.atT0(s, at.t0) {
		return false
	}
	now := m.picture(s, s.len)
	if now.joined || m.wrong != targetUninitialized && !m.initialized(s, at.t0) {
		return false
	}
	was := m.picture(s, at.t0)
	same := s.len == at.t0
	switch m.wrong {
	case epochNotCompared:
		same = true
	case confVersionNotCompared:
		same = now.version == was.version
	}
	return same && s.appendTarget(newChange(commit, uint8(a+1)))
}

// refuseMerge appends RefuseMerge, for a leader of S that is to give up.
func (m *model) refuseMerge(s *state, a int) bool {
	asked := false
	for i := range s.s {
		r := &s.s[i]
		asked = asked || r.lead && r.mode == merging && int(r.tried) == a+1
	}
	t0 := s.try[a].t0
	return asked && s.len == t0 && m.atT0(s, t0) && s.appendTarget(newChange(refusing, uint8(a+1)))
}

// atT0 tells whether a replica of T is at T0: it may lead.
func (m *model) atT0(s *state, t0 uint8) bool {
	for x := range s.t {
		if t := &s.t[x]; t.kind == alive && t.applied == t0 {
			return true
		}
	}
	return false
}

// initialized tells whether all replicas of T at T0 were initialized once.
func (m *model) initialized(s *state, t0 uint8) bool {
	p := m.picture(s, t0)
	for x, id := range p.ids {
		t := &s.t[x]
		if id != absent && (t.id != id || t.kind != alive && t.kind != tomb) {
			return false
		}
	}
	return true
}

// committed is the index of CommitMerge in T's log, 0 if it is not there.
func (s *state) committed(a int) uint8 {
	for k, c := range s.log[:s.len] {
		if c == newChange(commit, uint8(a+1)) {
			return uint8(k + 1)
		}
	}
	return 0
}
