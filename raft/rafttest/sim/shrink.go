package sim

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Cut is what is left out of a run: weather, by the names of Weathers, and single commands and
// faults, by their numbers. The zero Cut leaves out nothing.
type Cut struct {
	Without []string
	Drop    []Span
}

// Span are the commands or faults with numbers in [From, To).
type Span struct {
	Fault    bool
	From, To int
}

// Weather is a part of a profile that can be left out, and what that means.
type Weather struct {
	Name string
	Calm func(*Profile)
}

// Weathers are all of them.
var Weathers = []Weather{
	{"crash", func(p *Profile) { p.CrashPerReady = 0 }},
	{"loss", func(p *Profile) { p.Loss = 0 }},
	{"dup", func(p *Profile) { p.Dup = 0 }},
	{"fault", func(p *Profile) { p.FaultUS = 0 }},
	{"confchange", func(p *Profile) { p.ConfChange = 0 }},
	{"transfer", func(p *Profile) { p.Transfer = 0 }},
	{"compact", func(p *Profile) { p.Compact = 0 }},
	{"read", func(p *Profile) { p.Read = 0 }},
	{"learner", func(p *Profile) { p.Learners = 0 }},
	{"tail", func(p *Profile) { p.TailUS = 1 }},
	{"sync", func(p *Profile) { p.SyncUS = 0 }},
	{"apply", func(p *Profile) { p.ApplyUS, p.SlowApply = 0, 0 }},
	{"wipe", func(p *Profile) { p.Wipe = 0 }},
	{"snapfail", func(p *Profile) { p.SnapFail, p.SnapReportLost, p.SnapUnavailable = 0, 0, 0 }},
	{"storage", func(p *Profile) { p.StorageError = 0 }},
	{"clocks", func(p *Profile) { p.RateLo, p.RateHi = 1, 1 }},
	{"limits", func(p *Profile) {
		p.MaxSizePerMsg, p.MaxInflightMsgs, p.MaxInflightBytes = 0, 0, 0
		p.MaxUncommitted, p.MaxCommittedPerReady = 0, 0
	}},
}

// calm applies the weather that is left out.
func (c *Cut) calm(p *Profile) {
	for _, w := range Weathers {
		if slices.Contains(c.Without, w.Name) {
			w.Calm(p)
		}
	}
}

func (c *Cut) drops(fault bool, number int) bool {
	return slices.ContainsFunc(c.Drop, func(s Span) bool {
		return s.Fault == fault && s.From <= number && number < s.To
	})
}

// String is the form that ParseCut reads, and a command line takes.
func (c Cut) String() string {
	parts := slices.Clone(c.Without)
	for _, s := range c.Drop {
		kind := "c"
		if s.Fault {
			kind = "f"
		}
		parts = append(parts, fmt.Sprintf("%s%d-%d", kind, s.From, s.To))
	}
	return strings.Join(parts, ",")
}

// ParseCut reads names of weathers and spans, c3-7 of commands and f3-7 of faults, parted by
// commas.
func ParseCut(text string) (c Cut, err error) {
	for _, part := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' }) {
		if slices.ContainsFunc(Weathers, func(w Weather) bool { return w.Name == part }) {
			c.Without = append(c.Without, part)
			continue
		}
		from, to, ok := strings.Cut(part[1:], "-")
		s := Span{Fault: part[0] == 'f'}
		var errs [2]error
		s.From, errs[0] = strconv.Atoi(from)
		s.To, errs[1] = strconv.Atoi(to)
		if !ok || errs != [2]error{} || part[0] != 'c' && part[0] != 'f' {
			return c, fmt.Errorf("sim: %q is neither a weather nor a span", part)
		}
		c.Drop = append(c.Drop, s)
	}
	return c, nil
}

// shrinker looks for a smaller run of a seed that breaks the same invariant.
type shrinker struct {
	seed  uint64
	opt   Options
	best  Result
	tries int
}

// Shrink plays a seed that fails, and then smaller runs of it as long as there are tries: shorter
// ones, with parts of the weather left out, with commands and faults left out by halves, quarters
// and so on. It returns the smallest that breaks the same invariant, with the options that replay
// it, and the result of the whole run if that breaks none.
func Shrink(seed uint64, opt Options, tries int) (Result, Options) {
	s := &shrinker{seed: seed, opt: opt, tries: tries}
	s.best = Run(seed, opt)
	if s.best.Violation == nil {
		return s.best, opt
	}
	for before := -1; s.tries > 0 && s.best.Size() != before; {
		before = s.best.Size()
		s.shorten()
		s.calmDown()
		s.thinOut(true)
		s.thinOut(false)
	}
	return s.best, s.opt
}

// Size of a run: what was done to it, and for how long.
func (r *Result) Size() int { return r.Commands + r.Faults + r.Events }

// try plays a candidate, and keeps it if it fails in the same way and is no larger.
func (s *shrinker) try(opt Options) bool {
	if s.tries == 0 {
		return false
	}
	s.tries--
	res := Run(s.seed, opt)
	if res.Violation == nil || res.Violation.Invariant != s.best.Violation.Invariant ||
		res.Size() > s.best.Size() {
		return false
	}
	s.best, s.opt = res, opt
	return true
}

// shorten ends the mishaps sooner.
func (s *shrinker) shorten() {
	if opt := s.opt; s.best.Violation.Event < opt.Events {
		opt.Events = s.best.Violation.Event
		s.try(opt)
	}
	for step := s.opt.Events / 2; step > 0; step /= 2 {
		opt := s.opt
		opt.Events -= step
		if opt.Events > 0 {
			s.try(opt)
		}
	}
}

func (s *shrinker) calmDown() {
	for _, w := range Weathers {
		if !slices.Contains(s.opt.Cut.Without, w.Name) {
			opt := s.opt
			opt.Cut.Without = append(slices.Clone(opt.Cut.Without), w.Name)
			s.try(opt)
		}
	}
}

// thinOut leaves out spans of the commands or faults, large ones first.
func (s *shrinker) thinOut(faults bool) {
	count := s.best.Commands
	if faults {
		count = s.best.Faults
	}
	for size := (count + 1) / 2; size > 0 && s.tries > 0; size /= 2 {
		for from := 0; from < count; from += size {
			span := Span{Fault: faults, From: from, To: from + size}
			if s.opt.Cut.drops(faults, from) && s.opt.Cut.drops(faults, span.To-1) {
				continue
			}
			opt := s.opt
			opt.Cut.Drop = addSpan(opt.Cut.Drop, span)
			s.try(opt)
		}
	}
}

// addSpan adds a span and joins what touches.
func addSpan(spans []Span, add Span) []Span {
	joined := []Span{}
	for _, s := range spans {
		if s.Fault == add.Fault && s.From <= add.To && add.From <= s.To {
			add.From, add.To = min(add.From, s.From), max(add.To, s.To)
			continue
		}
		joined = append(joined, s)
	}
	return append(joined, add)
}
