package model

import "testing"

// variants has for each changed rule the invariant that it breaks, the least number of steps to
// that, and what has to happen beside one merge in one term.
var variants = []struct {
	name   string
	wrong  variant
	broken string
	steps  int
	m      model
}{
	{"ack before publish", ackBeforePublish, "M1", 8, model{}},
	{"ack before sync", ackBeforeSync, "M3", 10, model{}},
	{"frozen state forgotten at restart", forgottenAtRestart, "M3", 10, model{terms: 2}},
	{"writes after P take effect", writesAfterPrepare, "M1", 6, model{limits: used{writes: 1}}},
	{
		"Ready before an entry of the own term", readyBeforeOwnTerm, "M2", 13,
		model{terms: 3, direct: true},
	},
	{"Ready with RollbackMerge in flight", readyWithRollback, "M2", 10, model{direct: true}},
	{"direct rollback in another term", directInOtherTerm, "M2", 12, model{terms: 2, direct: true}},
	{"direct rollback after Ready", directAfterReady, "M2", 10, model{direct: true}},
	{"rollback without proof", rollbackWithoutProof, "M2", 10, model{}},
	{"rollback on 'not proposed'", rollbackOnNotProposed, "M2", 10, model{}},
	{"epoch not compared at apply", epochNotCompared, "M2", 12, model{limits: used{splits: 1}}},
	{
		"conf version not compared at apply", confVersionNotCompared, "M2", 12,
		model{limits: used{removes: 1}},
	},
	{"floor ignored", floorIgnored, "M2", 13, model{limits: used{sources: 1, backs: 1}}},
	{
		"floor not the highest after a message", floorOfMessageIgnored, "M2", 14,
		model{limits: used{removes: 1}},
	},
	{"list not in raft snapshots", listNotInSnapshot, "M2", 14, model{limits: used{backs: 1}}},
	{"second proof from old acks", proofOfOldAcks, "M2", 11, model{limits: used{removes: 1}}},
	{
		"second proof from an earlier tombstone", earlierTombstone, "M2", 20,
		model{limits: used{removes: 1, adds: 1}},
	},
	{"acks of a quorum", acksOfQuorum, "M3", 7, model{}},
	{"acks of another P", acksOfOther, "M3", 18, model{tries: 2, limits: used{splits: 1}}},
	{"takeover in two batches", takeoverInTwo, "M3", 10, model{}},
	{
		"T's replica not initialized", targetUninitialized, "M6", 17,
		model{limits: used{removes: 1, adds: 1}},
	},
	{"destroyed on Merged with T at T0", destroyedAtT0, "M6", 10, model{}},
	{"destroyed because T is beyond T0", destroyedBeyond, "M5", 6, model{limits: used{splits: 1}}},
	{"joined version without + 1", versionOfMax, "M4", 8, model{}},
	{"no takeover", noTakeover, "End", 2, model{}},
	{"no exit for a listed merge", noExitListed, "End", 11, model{limits: used{backs: 1}}},
	{"no exit without T's replica", noExitAbsent, "End", 11, model{limits: used{removes: 1}}},
}

// TestMergeVariants changes the rules one by one. The search finds each change, and nothing in the
// same place without it.
func TestMergeVariants(t *testing.T) {
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			m := base(v.m)
			ends := uint64(0)
			if v.broken == "End" {
				ends = 1
			}
			if r := (&search{m: m, endsEvery: ends}).run(); r.broken != "" || !r.complete {
				t.Fatalf("without the change: %v", r)
			}
			m.wrong = v.wrong
			r := (&search{m: m, endsEvery: ends}).run()
			t.Log(r)
			if r.broken != v.broken || len(r.trace) != v.steps {
				t.Errorf("%q after %d steps, want %q after %d", r.broken, len(r.trace), v.broken,
					v.steps)
			}
		})
	}
}
