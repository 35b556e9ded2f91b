// Package filter says which stores may be the source or the target of a move, and why not.
//
// Each rule is a pure function of a store, the clock and the settings. The table in Rules is the
// whole policy; explain and metrics show the names of the rules that refused.
package filter

import (
	"time"

	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/core"
)

// Action is what a store is wanted for.
type Action uint8

// The actions.
const (
	RegionSource Action = iota // a replica may leave for balance
	RegionTarget               // a replica may come
	LeaderSource               // a leadership may leave for balance
	LeaderTarget               // a leadership may come
)

// Env is what rules look at besides the store.
type Env struct {
	Now      time.Time
	Schedule *config.Schedule
}

// Rule refuses a store by returning true.
type Rule struct {
	Name string
	// Temporary rules pass by themselves: if the best target is refused only by these, waiting is
	// better than placing badly.
	Temporary bool
	Refuses   func(s *core.StoreInfo, e Env) bool
}

var (
	notUp     = Rule{"not-up", false, func(s *core.StoreInfo, _ Env) bool { return !s.IsUp() }}
	tombstone = Rule{"tombstone", false, func(s *core.StoreInfo, _ Env) bool {
		return s.IsTombstone()
	}}
	down = Rule{"down", false, func(s *core.StoreInfo, e Env) bool {
		return s.DownTime(e.Now) > e.Schedule.MaxStoreDownTime.D()
	}}
	disconnected = Rule{"disconnected", true, func(s *core.StoreInfo, e Env) bool {
		return s.DownTime(e.Now) > e.Schedule.StoreDisconnect.D()
	}}
	busy     = Rule{"busy", true, func(s *core.StoreInfo, _ Env) bool { return s.IsBusy() }}
	slowDisk = Rule{"slow-disk", true, func(s *core.StoreInfo, e Env) bool {
		return s.IsSlow(e.Now)
	}}
	// Replicas only keep away while the disk is slow: one that is missing cannot wait for as long
	// as leaders do.
	slowNow = Rule{"slow-disk", true, func(s *core.StoreInfo, _ Env) bool {
		return s.Slowness().Now()
	}}
	lowSpace = Rule{"low-space", false, func(s *core.StoreInfo, e Env) bool {
		return s.LowSpace(e.Schedule.LowSpaceRatio)
	}}
	// A store of which nobody knows whether it is where it says would keep its new peers pending
	// for ever.
	unproven = Rule{"address-unproven", false, func(s *core.StoreInfo, _ Env) bool {
		return s.Unproven() != ""
	}}
	evicting = Rule{"evict-leader", false, func(s *core.StoreInfo, _ Env) bool {
		return s.EvictLeaders()
	}}
)

// Rules is the policy.
var Rules = [...][]Rule{
	// Offline and down stores are the replica checker's business, not balance's.
	RegionSource: {notUp, down},
	RegionTarget: {notUp, down, disconnected, busy, slowNow, lowSpace, unproven},
	LeaderSource: {tombstone, down, disconnected},
	LeaderTarget: {notUp, down, disconnected, busy, slowDisk, evicting},
}

// Refusal returns the name of the first rule that refuses the store, "" if none does, and whether
// all refusals are temporary.
func Refusal(s *core.StoreInfo, a Action, e Env) (name string, temporary bool) {
	temporary = true
	for _, r := range Rules[a] {
		if r.Refuses(s, e) {
			if name == "" {
				name = r.Name
			}
			temporary = temporary && r.Temporary
		}
	}
	return name, name != "" && temporary
}

// Allows tells whether no rule refuses the store.
func Allows(s *core.StoreInfo, a Action, e Env) bool {
	name, _ := Refusal(s, a, e)
	return name == ""
}

// Connected tells whether the store was heard of lately.
func Connected(s *core.StoreInfo, e Env) bool { return !disconnected.Refuses(s, e) }

// Down tells whether the store has been silent for so long that its replicas are rebuilt.
func Down(s *core.StoreInfo, e Env) bool { return down.Refuses(s, e) }
