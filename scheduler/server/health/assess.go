package health

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// assessment gathers the conditions of one view.
type assessment struct {
	view   *View
	stores map[uint64]*store
	out    *Report
	// waiting is what is within its grace; "" if nothing is.
	waiting string
}

// Assess judges a view.
func Assess(v *View) *Report {
	a := &assessment{view: v, stores: v.storesByID(), out: &Report{
		Time: v.Now, Conditions: []Condition{}, first: map[key]time.Time{},
		Counts: Counts{
			Replicas: v.Replication.MaxReplicas, Regions: len(v.Regions), Members: len(v.Members),
		},
	}}
	a.judgeMembers()
	a.judgeStores()
	a.judgeRegions()
	a.judgeVersions()
	slices.SortStableFunc(a.out.Conditions, func(x, y Condition) int {
		return cmp.Compare(rank(x.Code), rank(y.Code))
	})
	a.conclude()
	return a.out
}

// raise adds a condition, unless it is within its grace. A zero since is when it was first seen.
func (a *assessment) raise(
	code Code, subject string, since time.Time, count int, regions []uint64, detail string,
) {
	kind, k := Table[rank(code)], key{code, subject}
	if since.IsZero() {
		since = a.firstSeen(k)
	}
	a.out.first[k] = since
	lasts := a.view.Now.Sub(since)
	if lasts < kind.Grace {
		a.waiting = subject + ": " + detail
		return
	}
	a.out.Conditions = append(a.out.Conditions, Condition{
		Code: code, Severity: kind.Severity, Subject: subject, Count: count, Regions: regions,
		Since: since.UTC(), Seconds: max(lasts.Seconds(), 0), Detail: detail, Advice: kind.Advice,
	})
}

// firstSeen is when a condition that holds now was first seen without a break.
func (a *assessment) firstSeen(k key) time.Time {
	if b := a.view.Before; b != nil {
		if first, ok := b.first[k]; ok {
			return first
		}
	}
	told, ok := a.view.Told[Condition{Code: k.code, Subject: k.subject}.Key()]
	if ok && a.view.Leading < toldAge && told.Before(a.view.Now) {
		return told
	}
	return a.view.Now
}

// conclude finds the state. What is not known is never well.
func (a *assessment) conclude() {
	v, out := a.view, a.out
	switch {
	case !v.Bootstrapped:
		out.Incomplete = "no store has joined"
	case !v.Prepared:
		out.Incomplete = fmt.Sprintf(
			"the placement leader has led for %s and has reports of %d of %d regions that it knows",
			v.Leading.Round(time.Second), out.Counts.Confirmed, out.Counts.Regions)
	case len(v.Regions) == 0:
		out.Incomplete = "no region is known"
	case a.waiting != "":
		out.Incomplete = a.waiting
	}
	out.Health = OK
	if out.Incomplete != "" {
		out.Health = Unknown
	}
	for _, c := range out.Conditions {
		switch {
		case c.Severity == SeverityCritical:
			out.Health = Critical
		case c.Severity == SeverityWarning && out.Health != Critical:
			out.Health = Degraded
		}
	}
}

func (a *assessment) judgeMembers() {
	for _, m := range a.view.Members {
		subject := "member " + m.Name
		if m.Silent.IsZero() {
			a.out.Counts.MembersAlive++
		} else {
			a.raise(MemberDead, subject, m.Silent, 1, nil, "does not answer: "+m.Why)
		}
		if m.Skew.Beyond(MaxSkew) {
			a.raise(ClockSkew, subject, time.Time{}, 1, nil, skewText(m.Skew.Middle()))
		}
	}
	for _, m := range a.view.Alarms {
		a.raise(Alarm, "member "+m.Member, time.Time{}, 1, nil, "etcd refuses writes: "+m.Kind)
	}
}

func skewText(d time.Duration) string {
	if d < 0 {
		return fmt.Sprintf("its clock is %s behind the placement leader's",
			(-d).Round(time.Millisecond))
	}
	return fmt.Sprintf("its clock is %s ahead of the placement leader's", d.Round(time.Millisecond))
}

// judgeVersions compares within stores and within members: both are upgraded one by one.
func (a *assessment) judgeVersions() {
	stores, members := map[string]int{}, map[string]int{}
	for _, s := range a.stores {
		if v := s.info.Meta().GetVersion(); !s.gone && v != "" {
			stores[v]++
		}
	}
	for _, m := range a.view.Members {
		if m.Version != "" {
			members[m.Version]++
		}
	}
	for subject, versions := range map[string]map[string]int{"stores": stores, "members": members} {
		if len(versions) < 2 {
			continue
		}
		var parts []string
		total := 0
		for v, n := range versions {
			parts = append(parts, fmt.Sprintf("%d of version %s", n, v))
			total += n
		}
		slices.Sort(parts)
		a.raise(VersionsDiffer, subject, time.Time{}, total, nil, strings.Join(parts, ", "))
	}
}
