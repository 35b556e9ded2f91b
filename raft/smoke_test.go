package raft

import (
	"testing"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
)

func TestSmokeThreeNodes(t *testing.T) {
	for _, prod := range []bool{false, true} {
		ids := []uint64{1, 2, 3}
		st := map[uint64]*MemoryStorage{}
		rn := map[uint64]*RawNode{}
		applied := map[uint64]int{}
		for _, id := range ids {
			st[id] = NewMemoryStorage()
			c := &Config{ID: id, peers: ids, ElectionTick: 10, HeartbeatTick: 1, Storage: st[id]}
			if prod {
				c.PreVote, c.CheckQuorum, c.AckOnPersist, c.AsyncApply, c.UnstableOnly = true, true, true, true, true
				c.MaxSizePerMsg, c.MaxInflightMsgs = 100, 4
			}
			var err error
			if rn[id], err = NewRawNode(c); err != nil {
				t.Fatal(err)
			}
		}
		run := func() {
			for busy := true; busy; {
				busy = false
				for _, id := range ids {
					for rn[id].HasReady() {
						busy = true
						rd := rn[id].Ready()
						st[id].Append(rd.Entries)
						if !IsEmptyHardState(rd.HardState) {
							st[id].SetHardState(rd.HardState)
						}
						e, l := rd.SplitMessages()
						for _, m := range append(e, l...) {
							if err := rn[m.To].Step(m); err != nil {
								t.Fatal(err)
							}
						}
						applied[id] += len(rd.CommittedEntries)
						rn[id].Advance(rd)
						if n := len(rd.CommittedEntries); n > 0 && prod {
							rn[id].AppliedTo(rd.CommittedEntries[n-1].Index)
						}
						for _, rs := range rd.ReadStates {
							t.Log(id, rs)
						}
					}
				}
			}
		}
		rn[1].Campaign()
		run()
		if rn[1].State() != StateLeader {
			t.Fatal("no leader", rn[1].Status())
		}
		for i := 0; i < 50; i++ {
			if err := rn[1].Propose(make([]byte, 20)); err != nil {
				t.Fatal(err)
			}
			if i%10 == 0 {
				rn[1].ReadIndex(uint64(i))
				run()
			}
		}
		run()
		for i := 0; i < 30; i++ {
			for _, id := range ids {
				rn[id].Tick()
			}
			run()
		}
		for _, id := range ids {
			if applied[id] != 51 {
				t.Fatal(id, applied[id], rn[id].Status())
			}
		}
		rn[1].TransferLeader(2)
		run()
		if rn[2].State() != StateLeader {
			t.Fatal(rn[2].Status())
		}
		rn[2].ProposeConfChange(eraftpb.ConfChange{ChangeType: eraftpb.ConfChangeType_RemoveNode, NodeId: 3})
		run()
		t.Log(rn[2].QuorumRound(), rn[2].HeartbeatRound())
	}
}
