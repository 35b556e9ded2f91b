package health

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// State sums a report up.
type State string

// The states.
const (
	OK       State = "ok"
	Degraded State = "degraded" // redundancy or room is missing; data is served
	Critical State = "critical" // data is not served, or in danger
	Unknown  State = "unknown"  // not enough is known to say that all is well
)

// Severity is how bad a condition is. A notice alone leaves the state OK.
type Severity string

// The severities.
const (
	SeverityCritical Severity = "critical"
	SeverityWarning  Severity = "warning"
	SeverityNotice   Severity = "notice"
)

// Code names a kind of condition. Part of the API; do not change.
type Code string

// The codes. Table has the severity of each and what to do.
const (
	NoQuorum       Code = "no-quorum"
	LeaderLost     Code = "leader-lost"
	NoLeader       Code = "no-leader"
	Diverged       Code = "diverged"
	Alarm          Code = "alarm"
	DiskFull       Code = "disk-full"
	StoreSilent    Code = "store-silent"
	ReplicaSilent  Code = "replica-silent"
	FewReplicas    Code = "few-replicas"
	Starving       Code = "starving"
	Quarantined    Code = "quarantined"
	Misplaced      Code = "misplaced"
	MemberDead     Code = "member-dead"
	StoreUnreached Code = "store-unreached"
	LowDisk        Code = "low-disk"
	SlowDisk       Code = "slow-disk"
	ClockSkew      Code = "clock-skew"
	VersionsDiffer Code = "versions-differ"
	ReadErrors     Code = "read-errors"
	StoreLeaving   Code = "store-leaving"
)

// Kind is what all conditions of a code have in common.
type Kind struct {
	Code     Code
	Severity Severity
	Advice   string
	// Grace is for how long it must have been seen before it counts: it passes by itself where all
	// is well.
	Grace time.Duration
}

// leaderGrace covers an election, and the time between a split and the first report of its halves.
const leaderGrace = 10 * time.Second

// callGrace covers the time between a store's registration and the moment at which it is called
// back.
const callGrace = 3 * time.Second

// Table has all kinds of conditions, the worst first. A report has its conditions in this order.
var Table = []Kind{
	{
		NoQuorum, SeverityCritical,
		"start the lost stores again; if they are lost for good: tinyctl recover regions", 0,
	},
	{
		LeaderLost, SeverityCritical,
		"start the store again; without a quorum of the others: tinyctl recover regions", 0,
	},
	{
		NoLeader, SeverityCritical, "look for the region at its stores' /regions and in their logs",
		leaderGrace,
	},
	{
		Diverged, SeverityCritical,
		"stop writing to the regions, find out which replica is right (tinyctl debug keys), remove the wrong one (tinyctl region remove-peer)", 0,
	},
	{Alarm, SeverityCritical, "NOSPACE: tinyctl member reclaim; CORRUPT: replace the member", 0},
	{DiskFull, SeverityCritical, "make room, delete data or add a store", 0},
	{
		StoreSilent, SeverityWarning,
		"start the store again, or tinyctl store offline and bury, if it is lost for good", 0,
	},
	{
		ReplicaSilent, SeverityWarning,
		"look at the network between the stores; the replica is replaced after max-peer-down-time",
		0,
	},
	{
		FewReplicas, SeverityWarning,
		"add a store, or wait for the replicas that are on their way: tinyctl operator list", 0,
	},
	{
		Starving, SeverityWarning,
		"look at the log of the follower's store and the network to it; if it stays: tinyctl region remove-peer", 0,
	},
	{
		Quarantined, SeverityWarning,
		"wait for the new replicas; look at the store's disk and its /status", 0,
	},
	{Misplaced, SeverityWarning, "tinyctl region move-peer, to a location without a replica", 0},
	{
		MemberDead, SeverityWarning,
		"start the member again, or tinyctl member remove and let another one join", 0,
	},
	{
		StoreUnreached, SeverityWarning, "check the store's advertise-addr and the network to it",
		callGrace,
	},
	{LowDisk, SeverityWarning, "make room or add a store: no replicas are placed here", 0},
	{SlowDisk, SeverityWarning, "look at the store's disk: no replicas are placed here", 0},
	{ClockSkew, SeverityWarning, "synchronise the clock of the machine", 0},
	{VersionsDiffer, SeverityWarning, "finish the upgrade", 0},
	{
		ReadErrors, SeverityNotice,
		"look at the store's log; if it happens again, replace the disk", 0,
	},
	{StoreLeaving, SeverityNotice, "wait until it is empty: tinyctl store show", 0},
}

func rank(c Code) int { return slices.IndexFunc(Table, func(k Kind) bool { return k.Code == c }) }

// Condition is something that is not as it should be.
type Condition struct {
	Code     Code     `json:"code"`
	Severity Severity `json:"severity"`
	// Subject is what it is about: regions, store 3, member m2, stores, members.
	Subject string `json:"subject"`
	// Count is how many regions, replicas, stores or members it is about.
	Count int `json:"count"`
	// Regions are some of the regions, at most examples.
	Regions []uint64 `json:"regions,omitempty"`
	// Since is when it began, as far as this leader and the one before know; Seconds is how long
	// ago that is.
	Since   time.Time `json:"since"`
	Seconds float64   `json:"for_seconds"`
	Detail  string    `json:"detail"`
	Advice  string    `json:"advice"`
}

// examples is how many regions a condition names.
const examples = 10

// String is one line. It is stable: transcripts depend on it.
func (c Condition) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s: %s: %s", c.Severity, c.Code, c.Subject, c.Detail)
	if len(c.Regions) > 0 {
		fmt.Fprintf(&b, " (%s)", ids(c.Regions, c.Count))
	}
	return b.String()
}

func ids(list []uint64, count int) string {
	parts := make([]string, 0, len(list)+1)
	for _, id := range list {
		parts = append(parts, fmt.Sprint(id))
	}
	if count > len(list) {
		parts = append(parts, "...")
	}
	return strings.Join(parts, ", ")
}

// Counts say how much was looked at.
type Counts struct {
	Stores       int `json:"stores"` // that are not tombstones
	StoresUp     int `json:"stores_up"`
	Regions      int `json:"regions"`
	Confirmed    int `json:"regions_confirmed"` // by their leaders
	Replicas     int `json:"replicas_wanted"`
	Members      int `json:"members"`
	MembersAlive int `json:"members_alive"`
}

// Report is the judgement about one picture. Immutable once published.
type Report struct {
	Health State `json:"health"`
	// Incomplete says why not all could be looked at; "" if it could.
	Incomplete string      `json:"incomplete,omitempty"`
	Time       time.Time   `json:"time"`
	Conditions []Condition `json:"conditions"`
	Counts     Counts      `json:"counts"`

	// first is when each condition was first seen, those within their grace included.
	first map[key]time.Time
}

// key identifies a condition from one report to the next.
type key struct {
	code    Code
	subject string
}

// Key identifies a condition from one report to the next.
func (c Condition) Key() string { return string(c.Code) + " " + c.Subject }

// Text is the sentence that sums a report up.
func (r *Report) Text() string {
	counts := map[Severity]int{}
	for _, c := range r.Conditions {
		counts[c.Severity]++
	}
	switch r.Health {
	case OK:
		return fmt.Sprintf("All %d regions have %d replicas and a leader.", r.Counts.Regions,
			r.Counts.Replicas)
	case Unknown:
		return "Not known yet: " + r.Incomplete + "."
	}
	text := fmt.Sprintf("Not healthy: critical conditions %d, warnings %d.",
		counts[SeverityCritical], counts[SeverityWarning])
	if r.Incomplete != "" {
		text += " There may be more: " + r.Incomplete + "."
	}
	return text
}
