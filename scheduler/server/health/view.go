package health

import (
	"time"

	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/core"
	"github.com/tinykv/tinykv/scheduler/server/schedule/filter"
)

// MaxSkew is how far a clock may be off before it is a condition. No clock decides about data;
// timestamps jump when another member leads, and logs of several machines cannot be read together.
const MaxSkew = 500 * time.Millisecond

// Member is a member of the placement service as the leader sees it.
type Member struct {
	Name    string
	Version string
	// Silent is since when it does not answer; zero if it does.
	Silent time.Time
	// Why says what came of the last try to reach it.
	Why  string
	Skew core.Skew
}

// EtcdAlarm is a state of the storage in which it refuses writes.
type EtcdAlarm struct{ Member, Kind string }

// View is a picture of the cluster at one instant. Nothing in it is changed once it is made.
type View struct {
	Now time.Time
	// Leading is for how long the leader that took the picture has led.
	Leading time.Duration
	// Bootstrapped: the first store has joined. Prepared: the leader has enough reports of regions
	// to plan.
	Bootstrapped, Prepared bool
	Schedule               *config.Schedule
	Replication            *config.Replication
	Stores                 []*core.StoreInfo
	Regions                []*core.RegionInfo
	Members                []Member
	Alarms                 []EtcdAlarm
	// Before is the report before of the same leader, nil for its first one.
	Before *Report
	// Told is when conditions have begun, by Condition.Key, as the leader before has told. It
	// counts while the leader of now has not led for as long as it takes to see them all again.
	Told map[string]time.Time
}

// toldAge is for how long the word of the leader before counts.
const toldAge = 2 * time.Minute

func (v *View) env() filter.Env { return filter.Env{Now: v.Now, Schedule: v.Schedule} }

// store is what the regions' judgement needs of a store.
type store struct {
	info *core.StoreInfo
	// gone: a tombstone. connected: it has reported lately.
	gone, connected bool
	// places are its location, a prefix of the labels for each depth.
	places []string
}

func (v *View) storesByID() map[uint64]*store {
	out := make(map[uint64]*store, len(v.Stores))
	for _, s := range v.Stores {
		st := &store{
			info: s, gone: s.IsTombstone(),
			connected: !s.IsTombstone() && filter.Connected(s, v.env()),
		}
		place := ""
		for _, label := range v.Replication.LocationLabels {
			place += "/" + s.Label(label)
			st.places = append(st.places, place)
		}
		out[s.ID()] = st
	}
	return out
}

// usable tells whether replicas may be placed on the store at all.
func (s *store) usable() bool { return s.connected && s.info.IsUp() }
