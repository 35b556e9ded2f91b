package planted

import (
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var flagRun = flag.Bool("plant", false, "compile and run the tests once for each bug")

// bug is source text and what takes its place. It is compiled by way of an overlay, so that the
// servers' own code knows nothing of it.
type bug struct {
	name, file string
	change     [][2]string
	// pkg and run name the tests that must find it within tries runs.
	pkg, run string
	args     []string
	tries    int
}

const (
	crashPkg = "./tests/crash"
	suitePkg = "./tests"

	modelPkg        = "./tests/txnsim"
	commandsPkg     = "./kv/transaction/commands"
	executorFile    = "kv/transaction/commands/executor.go"
	finishFile      = "kv/transaction/commands/finish.go"
	prewriteFile    = "kv/transaction/commands/prewrite.go"
	pessimisticFile = "kv/transaction/commands/pessimistic.go"
	timestampsFile  = "kv/transaction/commands/timestamps.go"
	readFile        = "kv/transaction/commands/read.go"
	chosenFile      = "kv/client/txn/chosen.go"
)

// enumerated is a bug that the crash enumeration finds always.
func enumerated(name, file, scenario string, change ...[2]string) bug {
	return bug{
		name: name, file: file, change: change, pkg: crashPkg,
		run: "^TestCrash$/^(" + scenario + ")", tries: 1,
		args: []string{"-maxfail", "1", "-workers", "4"},
	}
}

// merges is a bug of region merge that a test of its own finds always.
func merges(name, file, test string, change ...[2]string) bug {
	return bug{name: name, file: file, change: change, pkg: suitePkg, run: test, tries: 1}
}

var bugs = []bug{
	merges("merge-without-a-new-timestamp", timestampsFile, "TestCommitsAfterAMerge", [2]string{
		"	if before.tenure == at {\n", "	if before.tenure.term == at.term {\n",
	}, [2]string{
		"	return s.mu.standings[regionID].tenure == at\n",
		"	return s.mu.standings[regionID].tenure.term == at.term\n",
	}),
	merges("merge-with-an-old-safe-point", "kv/transaction/commands/safepoint.go",
		"TestSafePointAfterAMerge", [2]string{
			"	if s.mu.asked[regionID] == at {\n",
			"	if s.mu.asked[regionID].term == at.term {\n",
		}),
	merges("merge-counts-a-quorum", "kv/raftstore/merge.go", "TestMergeNeedsEveryReplica",
		[2]string{
			"		if !mg.acks[q.Id] {\n			return false\n		}\n	}\n	return true\n", "		_ = q\n	}\n	return len(mg.acks) >= 2\n",
		}),
	merges("merge-counts-acks-of-another-attempt", "kv/raftstore/merge.go",
		"TestMergeNeedsEveryReplica", [2]string{
			"	if mg.state == nil || m.Commit != mg.state.Commit ||", "	if mg.state == nil ||",
		}),
	{
		name: "merge-counts-any-early-ack", file: "kv/raftstore/merge.go",
		pkg: "./kv/raftstore", run: "TestEarlyAcknowledgements", tries: 1,
		change: [][2]string{{"		if commit == state.Commit {\n", "		if commit > 0 {\n"}},
	},
	{
		name: "merge-refuses-what-was-applied", file: "kv/raftstore/merge.go",
		pkg: "./kv/raftstore", run: "TestOutcomeWhenTheRegionWentIntoAnother", tries: 1,
		change: [][2]string{
			{"prop.Index() <= mg.state.Commit {\n", "prop.Index() < mg.state.Commit {\n"},
		},
	},
	merges("merge-refuses-writes", "kv/raftstore/write.go", "TestMergeHoldsWrites", [2]string{
		"p.transfer.hold(w, err) || p.merge.holdWrite(w, err) {", "p.transfer.hold(w, err) {",
	}),
	merges("merge-rolled-back-without-proof", "kv/raftstore/merge.go", "TestMergeLateOrder",
		[2]string{
			"		mg.toTarget(t, rspb.MergeMessage_Cancel)\n		mg.ask(t)\n",
			"		mg.proposeRollback()\n",
		}),
	merges("merge-of-an-uninitialized-target", "kv/raftstore/merge.go",
		"TestMergeUninitializedTarget", [2]string{
			"LeadTransferee() != raft.None || !mg.replicasFollow() {\n			return\n",
			"LeadTransferee() != raft.None {\n			return\n",
		}),
	merges("merge-forgotten-at-restart", "kv/raftstore/recover.go", "TestMergeFrozenAcrossRestarts",
		[2]string{
			"		merging = st.Merging\n", "		merging = nil\n",
		}),
	merges("frozen-region-is-read", "kv/raftstore/read.go", "TestMergeFrozenAcrossRestarts",
		[2]string{
			"p.removed == nil && p.merge.state == nil && p.lease.cell",
			"p.removed == nil && p.lease.cell",
		}),
	merges("frozen-replica-destroyed-before-its-target", "kv/raftstore/merge.go",
		"TestMergeTakeover", [2]string{
			"mg.merged && (absent || verdict == rspb.MergeMessage_Unknown)", "mg.merged",
		}),
	merges("frozen-replica-without-target-stays", "kv/raftstore/merge.go", "TestMergeTargetRemoved",
		[2]string{
			"mg.merged && (absent || verdict == rspb.MergeMessage_Unknown)", "mg.merged && false",
		}),
	merges("frozen-replica-without-takeover", "kv/raftstore/range_map.go", "TestMergeTakeover",
		[2]string{
			"		ok = ok && f.state.Target.Id == r.Id &&",
			"		ok = false && f.state.Target.Id == r.Id &&",
		}),
	merges("merged-source-keeps-its-log", "kv/raftstore/merge.go", "TestMerge$", [2]string{
		"		lb.Delete(source.Id)\n		if err := s.log.Write(&lb, true); err != nil {\n			return err\n		}\n", "		_ = lb\n",
	}),
	{
		name: "merge-at-another-epoch", file: "kv/raftstore/regions/regions.go",
		pkg: "./kv/raftstore/apply", run: "TestMergeNeedsT0", tries: 1,
		change: [][2]string{
			{
				"	case raft_cmdpb.AdminCmdType_Split:\n		return true, true\n",
				"	case raft_cmdpb.AdminCmdType_Split:\n		return true, true\n	case raft_cmdpb.AdminCmdType_CommitMerge:\n		return true, false\n",
			},
		},
	},
	{
		name: "merge-with-an-old-version", file: "kv/raftstore/regions/merge.go",
		pkg: "./kv/raftstore/regions", run: "TestJoin", tries: 1,
		change: [][2]string{
			{"	c.RegionEpoch.Version = 1 +\n", "	c.RegionEpoch.Version =\n"},
		},
	},
	{
		name: "told-target-refuses", file: "kv/raftstore/regions/merge.go",
		pkg: "./kv/raftstore/regions", run: "TestToldSaysNothingOfMerges", tries: 1,
		change: [][2]string{
			{"	c.MergesFloor = math.MaxUint64\n", "	_ = uint64(math.MaxUint64)\n"},
		},
	},
	enumerated("merge-forgets-its-source", "kv/raftstore/apply/merge.go", "merge-(leader|follower)",
		[2]string{
			"	meta.PutMerged(w.batch, st, joined)\n",
			"	if err := w.flush(); err != nil {\n		return message.Result{}, err\n	}\n	meta.PutMerged(w.batch, st, joined)\n",
		}),
	enumerated("B5-send-before-persist", "kv/raftstore/worker.go", "append-follower", [2]string{
		"	sent := w.flushMessages()\n",
		"	for _, p := range t.ready {\n		for i := range p.late {\n			p.sendRaft(t, &p.late[i])\n		}\n		p.late = nil\n	}\n	sent := w.flushMessages()\n",
	}),
	{
		name: "B6-local-read-without-check", file: "kv/raftstore/read.go", pkg: suitePkg,
		run: "TestIsolatedLeaderServesNothingStale|Partition.*2B", tries: 3,
		change: [][2]string{
			{
				"	if hd.lease == nil || !hd.lease.valid(s.clock) {\n		return nil, nil\n	}\n", "",
			},
			{
				"	return l.box.handle.Load() == l.handle && l.handle.lease.valid(l.clock)\n",
				"	return true\n",
			},
		},
	},
	{
		name: "B10-callback-by-index-only", file: "kv/raftstore/message/proposal.go", pkg: suitePkg,
		run: "Partition.*2B", tries: 5,
		change: [][2]string{
			{"return p.index == index && p.term == term }", "return p.index == index }"},
		},
	},
	{
		name: "B11-no-epoch-check-at-apply", file: "kv/raftstore/apply/entries.go", pkg: suitePkg,
		run: "TestWriteBehindASplitIsRefused3B", tries: 1,
		change: [][2]string{
			{
				"	if !regions.EpochMatches(a.region, cmd.Header.RegionEpoch, true, false) {\n		return message.Result{Err: w.epochNotMatch(a)}, nil\n	}\n	if cmd", "	if cmd",
			},
			{"refused = regions.CheckKey(a.region, op.Key)", "refused, _ = nil, regions.CheckKey"},
		},
	},
	{
		name: "lease-of-good-clocks-only", file: "kv/config/config.go", pkg: "./kv/config",
		run: "TestLeaseOutlivesNoElection", tries: 1,
		change: [][2]string{{"LeaseDrift: 20,", "LeaseDrift: 10,"}},
	},
	{
		name: "learner-promoted-empty", file: "kv/raftstore/confchange.go", pkg: suitePkg,
		run: "TestLearnerIsPromotedWhenItHasCaughtUp", tries: 1,
		change: [][2]string{{"		return p.checkPromotion(q)\n", "		return nil\n"}},
	},
	{
		name: "refused-split-is-forgotten", file: "kv/raftstore/split.go", pkg: suitePkg,
		run: "TestSplitThatWasRefusedComesAgain", tries: 1,
		change: [][2]string{{"	st.sizeKnown = false\n", ""}},
	},
	{
		name: "window-follows-arrival", file: "pkg/rpc/server/intake.go", pkg: "./pkg/rpc/server",
		run: "TestHalfRequestsAreBounded", tries: 1,
		change: [][2]string{
			{
				"	return in.mu.used+n <= limit || n > limit-in.limit/4 && in.mu.used <= in.limit/4\n", "	_ = limit\n	return true\n",
			},
		},
	},
	{
		name: "lost-quorum-is-no-condition", file: "scheduler/server/health/regions.go",
		pkg: "./scheduler/server/health", run: "TestTranscripts", tries: 1,
		change: [][2]string{
			{
				"		{NoQuorum, &t.noQuorum, \"have lost so many replicas that they serve nothing\"},\n", "",
			},
		},
	},
	{
		name: "first-hash-is-the-majority", file: "kv/raftstore/compare.go", pkg: "./kv/raftstore",
		run: "TestJudge", tries: 1,
		change: [][2]string{{"votes[h] > regions.VoterCount(region)/2", "votes[h] == 1"}},
	},
	{
		name: "hash-without-what-is-in-the-batch", file: "kv/raftstore/apply/admin.go",
		pkg: suitePkg, run: "TestEqualReplicasAreFoundEqual", tries: 3,
		change: [][2]string{
			{
				"	if err := w.flush(); err != nil {\n		return message.Result{}, err\n	}\n	m := message.Hashed", "	m := message.Hashed",
			},
		},
	},
	{
		name: "retry-is-a-second-write", file: "kv/raftstore/exactly_once.go", pkg: suitePkg,
		run: "TestRetryDoesNotOverwrite", tries: 1,
		change: [][2]string{
			{"	found, err := o.search(&w.Identity)\n", "	found, err := false, error(nil)\n"},
		},
	},
	{
		name: "late-attempt-is-proposed", file: "kv/raftstore/exactly_once.go", pkg: suitePkg,
		run: "TestLateAttemptIsRefused", tries: 1,
		change: [][2]string{{"	case id.Position >= o.floor:\n", "	case id.Position >= 0:\n"}},
	},
	{
		name: "retry-forgets-where-the-data-came-from", file: "kv/raftstore/exactly_once.go",
		pkg: suitePkg, run: "TestRetryAfterASplit", tries: 1,
		change: [][2]string{
			{
				"				a.SplitIndex, nil\n", "				origin.Position, nil\n",
			},
		},
	},
	{
		name: "retry-does-not-wait-for-its-log", file: "kv/raftstore/exactly_once.go",
		pkg: suitePkg, run: "TestRetryWaitsForTheFirstAttempt", tries: 1,
		change: [][2]string{
			{"			w.HeldUntil = o.p.rn.LastIndex()\n", "			w.HeldUntil = 0\n"},
		},
	},
	{
		name: "swap-compares-with-an-old-value", file: "kv/raftstore/apply/conditional.go",
		pkg: "./kv/raftstore/apply", run: "TestSwapSeesThePendingBatch", tries: 1,
		change: [][2]string{
			{
				"	if w.batch.Len() > 0 {\n		if err := w.flush(); err != nil {\n			return message.Result{}, err\n		}\n	}\n	key :=", "	key :=",
			},
		},
	},
	{
		name: "expiry-without-the-clock-of-the-entry", file: "kv/raftstore/apply/expiry.go",
		pkg: "./kv/raftstore/apply", run: "TestExpiry", tries: 1,
		change: [][2]string{
			{"at <= max(now, a.region.ExpiryFloor), nil", "at <= a.region.ExpiryFloor, nil"},
		},
	},
	{
		name: "swap-leaves-what-has-expired", file: "kv/raftstore/apply/conditional.go",
		pkg: "./kv/raftstore/apply", run: "TestExpiry", tries: 1,
		change: [][2]string{{"		w.remove(a, cf, r.Key, len(previous))\n", ""}},
	},
	{
		name: "readers-ahead-of-swaps", file: "kv/storage/raftstorage/expiry.go",
		pkg: "./kv/storage/raftstorage", run: "TestTimes", tries: 1,
		change: [][2]string{{"		return list[0].at\n", "		return t.millis()\n"}},
	},
	merges("split-loses-the-expiry-floor", "kv/raftstore/regions/regions.go",
		"TestTTLGoesWithTheData", [2]string{
			"	right.MaxPeerId = 0\n", "	right.MaxPeerId, right.ExpiryFloor = 0, 0\n",
		}),
	{
		name: "retried-swap-is-decided-again", file: "kv/raftstore/exactly_once.go", pkg: suitePkg,
		run: "TestRetriedSwapIsNotDecidedAgain", tries: 1,
		change: [][2]string{
			{
				"	case swapped:\n		return fateDone\n",
				"	case swapped:\n		return fateNone\n",
			},
		},
	},
	{
		name: "older-store-comes-back", file: "scheduler/server/features.go",
		pkg: "./scheduler/server", run: "TestFeatures", tries: 1,
		change: [][2]string{{"; missing != 0 {\n", "; missing != 0 && false {\n"}},
	},
	{
		name: "client-writes-twice", file: "kv/client/client.go", pkg: "./kv/client",
		run: "TestUnknownWithoutIdentities", tries: 1,
		change: [][2]string{
			{"		v.inexact = true\n	}\n	return v\n", "	}\n	return v\n"},
		},
	},
	{
		name: "damaged-entries-are-taken", file: "kv/raftstore/message/checksum.go", pkg: suitePkg,
		run: "TestFlippedBitsBetweenStores", tries: 1,
		change: [][2]string{
			{"binary.LittleEndian.Uint32(field) != crc32.Checksum(data[:n], castagnoli)", "false"},
		},
	},
	{
		name: "removed-learner-stays", file: "kv/raftstore/tick.go", pkg: "./kv/raftstore",
		run: "TestRemovedLearnerAsks", tries: 1,
		change: [][2]string{
			{
				" && !regions.IsLearner(p.self) {",
				" && regions.PeerByID(p.region(), p.self.Id) != nil {",
			},
		},
	},
	{
		name: "damaged-lengths-are-taken", file: "pkg/rpc/checksum.go", pkg: "./pkg/rpc/client",
		run: "TestFlippedLengthEndsTheStream", tries: 1,
		change: [][2]string{{"case sums && !sealed, !sums", "case !sums"}},
	},
	{
		name: "io-error-as-an-answer", file: "kv/raftstore/apply/split.go", pkg: crashPkg,
		run: "^TestErrors$/^split", tries: 2,
		args: []string{"-maxfail", "1", "-errors", "300"},
		change: [][2]string{{
			"			return message.Result{}, fmt.Errorf(\"state of new region %d: %w\", right.Id, err)\n",
			"			return message.Result{Err: fmt.Errorf(\"%w\", err)}, nil\n",
		}},
	},
	{
		name: "rolled-back-store-votes", file: "raft/replication.go", pkg: suitePkg,
		run: "TestRolledBackStore", tries: 1,
		change: [][2]string{{"		r.lost = max(r.lost, promised)\n", ""}},
	},
	{
		name: "addresses-are-fetched-when-needed", file: "kv/client/cache.go", pkg: "./kv/client",
		run: "TestRoutesOutliveThePlacementService", tries: 1,
		change: [][2]string{{"	c.learn(meta.Peers)\n", ""}},
	},
	{
		name: "recovery-picks-the-shorter-log", file: "pkg/recovery/regions.go",
		pkg: "./pkg/recovery", run: "TestNewestReplicaGoesOn", tries: 1,
		change: [][2]string{
			{
				"cmp.Or(cmp.Compare(r.LastTerm, best.LastTerm), cmp.Compare(r.LastIndex, best.LastIndex),", "cmp.Or(-cmp.Compare(r.LastTerm, best.LastTerm), -cmp.Compare(r.LastIndex, best.LastIndex),",
			},
		},
	},
	enumerated("B12-no-applying-state", "kv/raftstore/install.go", "snapshot-receive", [2]string{
		"State: rspb.PeerState_Applying, Region: data.Region, Applying: md, Peer: p.self,",
		"State: rspb.PeerState_Normal, Region: p.region(), Peer: p.self,",
	}),
	{
		name: "B13-no-deadline-at-propose", file: "kv/raftstore/write.go", pkg: suitePkg,
		run: "TestLateWriteIsNotProposed", tries: 1,
		change: [][2]string{
			{
				"	if !deadline.IsZero() && p.store.clock.Now().After(deadline) {",
				"	if false {",
			},
		},
	},
	{
		name: "B14-clearing-for-an-uninitialized-peer", file: "kv/raftstore/destroy.go",
		pkg: suitePkg, run: "TestDestroyedEmptyPeerClearsNothing3B", tries: 1,
		change: [][2]string{
			{
				"	if !regions.IsInitialized(of) {\n		return nil\n	}\n	for _, free := range r.store.ranges.freeRanges(of) {", "	for _, free := range []keyRange{{of.StartKey, of.EndKey}} {",
			},
		},
	},
	{
		name: "B15-tombstone-without-peer-id", file: "kv/raftstore/apply/worker.go", pkg: suitePkg,
		run: "TestTombstoneKeepsPeerID3B", tries: 1,
		change: [][2]string{
			{
				"rspb.PeerState_Tombstone, end.Tombstone, end.Peer)",
				"rspb.PeerState_Tombstone, end.Tombstone, nil)",
			},
		},
	},
	{
		name: "B19-log-that-forgets-to-sync", file: "kv/raftlog/commit.go", pkg: "./kv/raftlog",
		run: "CrashAtEvery", tries: 1,
		change: [][2]string{
			{
				"	if err := c.active.file.Sync(); err != nil {\n",
				"	if err := error(nil); err != nil {\n",
			},
		},
	},
	enumerated("B19-no-sync-of-the-turn", "kv/raftstore/worker.go", "append", [2]string{
		"w.store.log.Write(&t.log, t.sync)", "w.store.log.Write(&t.log, false)",
	}),
	{
		name: "B20-no-overlap-check-of-snapshots", file: "kv/raftstore/range_map.go", pkg: suitePkg,
		run: "TestOverlappingSnapshotIsRefused3B|Split.*Snapshot.*3B", tries: 5,
		change: [][2]string{
			{
				"	if other != nil {\n		return nil, other\n	}\n	m.mu.reserved.set(installing, r)\n", "	m.mu.reserved.set(installing, r)\n",
			}, {"	return taken, nil\n", "	other = nil\n	return taken, other\n"},
		},
	},
	{
		name: "definite-error-after-the-proposal", file: "kv/raftstore/message/proposal.go",
		pkg: suitePkg, run: "TestPutOfARemovedLeaderIsUnknown", tries: 1,
		change: [][2]string{
			{
				"	p.end(Result{Err: &regionerr.UnknownError{Cause: cause}})\n",
				"	p.end(Result{Err: cause})\n",
			},
		},
	},
	{
		name: "older-truth-believed", file: "kv/raftstore/peer.go", pkg: "./kv/raftstore",
		run: "TestEmptyPeerDoesNotBelieveOlderTruth", tries: 1,
		change: [][2]string{
			{
				"return max(p.region().GetRegionEpoch().GetConfVer(), p.bornAt)",
				"return p.region().GetRegionEpoch().GetConfVer()",
			},
		},
	},
	enumerated("log-gc-without-engine-sync", "kv/raftstore/store.go", "log-gc", [2]string{
		"runner.NewRaftLogGC(s.engine.Sync,", "runner.NewRaftLogGC(func() error { return nil },",
	}),
	enumerated("vote-not-persisted", "kv/raftstore/ready.go", "append-follower|remove-peer-leader",
		[2]string{
			"			t.log.SetHardState(p.regionID, rd.HardState)\n",
			"			hs := rd.HardState\n			hs.Vote = 0\n			t.log.SetHardState(p.regionID, hs)\n",
		}),
	{
		name: "applied-before-synced", file: "kv/raftstore/ready.go", pkg: "./kv/raftstore",
		run: "TestOnlyWhatIsSyncedIsApplied", tries: 1,
		change: [][2]string{
			{" ||\n			len(rd.Entries) > 0 && e.Index >= rd.Entries[0].Index {", " {"},
		},
	},
	enumerated("orphans-kept", "kv/raftstore/recover.go", "destroy", [2]string{
		"	if err := rc.clearOrphans(snap, ranges); err != nil {\n		return err\n	}\n",
		"",
	}),
	{
		name: "directories-not-synced", file: "pkg/durable/durable.go", pkg: "./tests/power",
		run: "TestPowerLoss", tries: 1,
		change: [][2]string{{"	err = d.SyncDir(parent)\n", "	err = nil\n"}},
	},
	{
		name: "etcd-directories-not-synced", file: "scheduler/server/node.go", pkg: "./tests/power",
		run: "TestPowerLoss", tries: 1,
		change: [][2]string{{"{\"member/snap\", \"member/wal\", \"member\", \".\"}", "{}"}},
	},
	{
		name: "log-errors-reach-the-engine", file: "kv/engine/pebbleengine/fatal.go",
		pkg: "./kv/engine/pebbleengine", run: "TestEveryWriteFails", tries: 1,
		change: [][2]string{{"if err != nil && fs.d.armed.Load() {", "if false {"}},
	},
	{
		name: "reserve-less-than-a-start-needs", file: "kv/node/space.go", pkg: "./tests/e2e",
		run: "TestSmallDisks/bytes", tries: 1,
		change: [][2]string{{"		s.free < more(min(o.need, s.total/2)) ||\n", ""}},
	},
	enumerated("applied-index-in-a-batch-of-its-own", "kv/raftstore/apply/worker.go", "append",
		[2]string{
			"	if wrote {\n		if err",
			"	if wrote {\n		b := w.engine.NewBatch()\n		for _, a := range w.touched {\n			meta.Put(b, meta.ApplyStateKey(a.regionID), &rspb.RaftApplyState{AppliedIndex: a.applied, TruncatedState: &a.truncated})\n		}\n		if err := w.engine.Write(b, false); err != nil {\n			return err\n		}\n		if err",
		}),
	{
		name: "txn-write-of-any-term", file: "kv/raftstore/write.go", pkg: suitePkg,
		run: "TestDecisionOfAnEarlierTermIsRefused", tries: 1,
		change: [][2]string{
			{"	if w.Bound && !p.leadsIn(w.Header.Term) {", "	if false {"},
			{"		if !w.Bound || p.leadsIn(w.Header.Term) {", "		if true {"},
			{"	if h.Term != 0 && h.Term+1 < p.rn.Term() {", "	if false {"},
		},
	},
	{
		name: "txn-view-of-another-term", file: executorFile, pkg: commandsPkg,
		run: "TestViewOfAnotherTerm", tries: 1,
		change: [][2]string{
			{"	if at != term || does.chooses && ", "	if does.chooses && "},
			{"	if led == term {\n", "	if led == term || true {\n"},
		},
	},
	{
		name: "txn-latch-released-at-the-deadline", file: executorFile, pkg: commandsPkg,
		run: "TestLatchesOutliveTheClient", tries: 1,
		change: [][2]string{
			{"	case <-ctx.Done():\n", "	case <-ctx.Done():\n		release(false)\n"},
			{
				"	e.st.WriteBound(c, storage.Bound{Term: term}, tx.Modifies(), deadline,\n",
				"	time.AfterFunc(time.Until(deadline), release)\n	e.st.WriteBound(c, storage.Bound{Term: term}, tx.Modifies(), deadline,\n",
			},
		},
	},
	{
		name: "txn-latch-released-although-unknown", file: executorFile, pkg: commandsPkg,
		run: "TestLatchesOfATermThatHasEnded", tries: 1,
		change: [][2]string{
			{"		if known {\n			release(", "		{\n			release("},
			{"			if known {\n				e.settle(", "			{\n				e.settle("},
		},
	},
	{
		name: "txn-no-latches", file: executorFile, pkg: suitePkg, run: "TestBankWithReplays",
		tries: 5,
		change: [][2]string{
			{"latch.Hashes(domain, keys), useless", "latch.Hashes(domain, keys[:0]), useless"},
		},
	},
	{
		name: "txn-reads-pass-locks", file: "kv/transaction/commands/read.go", pkg: suitePkg,
		run: "TestBank$/quiet", tries: 3,
		change: [][2]string{{"	if l.Ts > version ||", "	if l.Ts > 0 ||"}},
	},
	{
		name: "txn-no-rollback-for-a-missing-lock", file: finishFile, pkg: commandsPkg,
		run: "TestAgainstTheModel", tries: 3,
		change: [][2]string{
			{"	return tx.rollbackMissing(key, startTS, l, rec, false)\n", "	return nil\n"},
		},
	},
	{
		name: "txn-protected-rollback-collapsed", file: finishFile, pkg: commandsPkg,
		run: "TestTranscripts", tries: 1,
		change: [][2]string{{" && !prev.Protected() {", " {"}},
	},
	{
		name: "txn-rollback-over-another-commit", file: finishFile, pkg: commandsPkg,
		run: "TestTranscripts", tries: 1,
		change: [][2]string{{"	case o == nil:\n", "	default:\n"}},
	},
	{
		name: "txn-old-prewrite-reports-a-conflict", file: "kv/transaction/commands/prewrite.go",
		pkg: commandsPkg, run: "TestAgainstTheModel", tries: 3,
		change: [][2]string{
			{"		if rec.Committed() {\n", "		if rec.Committed() && false {\n"},
		},
	},
	{
		name: "txn-time-to-live-by-the-whole-timestamp", file: "kv/transaction/commands/status.go",
		pkg: commandsPkg, run: "TestTranscripts", tries: 1,
		change: [][2]string{
			{"mvcc.PhysicalTime(l.Ts), mvcc.PhysicalTime(currentTS)", "l.Ts, currentTS"},
		},
	},
	{
		name: "txn-unknown-commit-called-failed", file: "kv/client/txn/commit.go",
		pkg: "./kv/client/txn", run: "TestLostAnswersOfCommits", tries: 1,
		change: [][2]string{
			{"			return &UnknownError{err}\n", "			return err\n"},
		},
	},
	{
		name: "txn-garbage-drops-the-newest", file: "kv/transaction/mvcc/garbage.go",
		pkg: commandsPkg, run: "TestCollectAgainstATwin", tries: 1,
		change: [][2]string{
			{
				"		case decided || !f.Changes():\n",
				"		case decided || !f.Changes() || true:\n",
			},
		},
	},
	{
		name: "txn-garbage-mark-goes-first", file: "kv/transaction/mvcc/garbage.go",
		pkg: commandsPkg, run: "TestCollectInSteps", tries: 1,
		change: [][2]string{{"			mark = f\n", "			out = append(out, *f)\n"}},
	},
	{
		name: "txn-garbage-leaves-values", file: "kv/transaction/mvcc/garbage.go", pkg: commandsPkg,
		run: "TestCollectAgainstATwin", tries: 1,
		change: [][2]string{
			{"	if f.Kind == WriteKindPut && f.ShortValue == nil {\n", "	if false {\n"},
		},
	},
	{
		name: "txn-garbage-before-locks", file: "kv/gcworker/worker.go", pkg: "./kv/gcworker",
		run: "TestOrderOfARound|TestFailures", tries: 1,
		change: [][2]string{
			{
				"AdvanceSafePoints(ctx, before(now, w.opt.LifeTime), 0)",
				"AdvanceSafePoints(ctx, before(now, w.opt.LifeTime), before(now, w.opt.LifeTime))",
			},
		},
	},
	{
		name: "txn-old-locks-missed", file: "kv/transaction/commands/gc.go", pkg: commandsPkg,
		run: "TestOldLocksSeesWhatIsUnderWay", tries: 1,
		change: [][2]string{
			{
				"	if err := e.quiesce(ctx, c); err != nil {\n",
				"	if err := error(nil); err != nil {\n",
			},
		},
	},
	{
		name: "txn-safe-point-of-an-earlier-term", file: "kv/transaction/commands/safepoint.go",
		pkg: commandsPkg, run: "TestSafePointIsLearnt", tries: 1,
		change: [][2]string{
			{"	if s.mu.asked[regionID] == at {\n", "	if s.mu.asked[regionID].term > 0 {\n"},
		},
	},
	{
		name: "txn-old-prewrite-accepted", file: "kv/transaction/commands/prewrite.go",
		pkg: commandsPkg, run: "TestSafePointIsLearnt", tries: 1,
		change: [][2]string{
			{
				"	if err := tx.young(p.StartTS); err != nil {\n",
				"	if err := tx.young(p.StartTS); err != nil && false {\n",
			},
		},
	},
	{
		name: "txn-commit-below-the-promise", file: finishFile, pkg: commandsPkg,
		run: "TestTranscripts", tries: 1,
		change: [][2]string{{"	if commitTS < l.MinCommitTS {\n", "	if false {\n"}},
	},
	{
		name: "txn-committed-locks-ignored", file: "kv/transaction/commands/read.go",
		pkg: commandsPkg, run: "TestTranscripts", tries: 1,
		change: [][2]string{
			{
				"	case !rd.NeedCommitTS && slices.Contains(rd.Through, l.Ts):\n",
				"	case false:\n",
			},
		},
	},
	{
		name: "txn-lite-resolve-takes-all", file: "kv/transaction/commands/resolve.go",
		pkg: commandsPkg, run: "TestTranscripts", tries: 1,
		change: [][2]string{
			{
				"		return e.Commit(ctx, c, keys, startTS, commitTS)\n",
				"		return e.ResolveLocks(ctx, c, Outcomes{startTS: commitTS})\n",
			},
		},
	},
	{
		name: "txn-range-delete-beside-others", file: "kv/transaction/commands/ranges.go",
		pkg: commandsPkg, run: "TestDeleteRangeIsAlone", tries: 1,
		change: [][2]string{
			{
				"	leave, err := e.exclude(ctx, c, term)\n",
				"	leave, err := func() {}, error(nil)\n",
			},
		},
	},
	{
		name: "txn-split-among-versions", file: "kv/raftstore/runner/split_checker.go",
		pkg: "./kv/raftstore/runner", run: "TestVersionsStayTogether", tries: 1,
		change: [][2]string{
			{"	if encoded {\n		var ok bool\n", "	if false {\n		var ok bool\n"},
		},
	},
	{
		name: "txn-batch-get-is-not-announced", file: readFile, pkg: commandsPkg,
		run: "TestReadsWaitForChosenCommits", tries: 1,
		change: [][2]string{
			{
				"	if err := e.announce(ctx, c, &rd, memlock.Search{Keys: keys}); err != nil {\n",
				"	if err := error(nil); err != nil {\n",
			},
		},
	},
	{
		name: "txn-view-before-the-announcement", file: readFile, pkg: commandsPkg,
		run: "TestReadsMissNoChosenCommit", tries: 3,
		change: [][2]string{
			{
				"	if err := e.announce(ctx, c, &rd, memlock.Search{Keys: [][]byte{key}}); err != nil {\n		return Value{}, err\n	}\n", "",
			},
			{
				"	defer view.Close()\n	if err := e.readable(ctx, c, &rd); err != nil {\n		return Value{}, err\n	}\n", "	defer view.Close()\n	if err := e.announce(ctx, c, &rd, memlock.Search{Keys: [][]byte{key}}); err != nil {\n		return Value{}, err\n	}\n	if err := e.readable(ctx, c, &rd); err != nil {\n		return Value{}, err\n	}\n",
			},
		},
	},
	{
		name: "txn-newest-value-passes-a-claim", file: readFile, pkg: commandsPkg,
		run: "TestReadsWaitForChosenCommits", tries: 1,
		change: [][2]string{
			{
				"err != nil || rd.Isolation == ReadCommitted {\n		return err",
				"err != nil || rd.TS == mvcc.TsMax || rd.Isolation == ReadCommitted {\n		return err",
			},
		},
	},
	{
		name: "txn-claim-ends-with-the-proposal", file: executorFile, pkg: commandsPkg,
		run: "TestReadsWaitForChosenCommits", tries: 1,
		change: [][2]string{
			{
				"	return false,\n		e.write(ctx, c, storage.Bound{Term: term, Ends: does.ends}",
				"	tx.unclaim()\n	return false,\n		e.write(ctx, c, storage.Bound{Term: term, Ends: does.ends}",
			},
			{
				"	e.st.WriteBound(c, storage.Bound{Term: term}, tx.Modifies(), deadline,\n",
				"	tx.unclaim()\n	e.st.WriteBound(c, storage.Bound{Term: term}, tx.Modifies(), deadline,\n",
			},
		},
	},
	{
		name: "txn-choice-before-the-claim", file: prewriteFile, pkg: commandsPkg,
		run: "TestReadsMissNoChosenCommit", tries: 5,
		change: [][2]string{
			{
				"	tx.claim = tx.locks.Claim(tx.domain, p.StartTS, keys)\n	chosen := tx.claim.Decide(max(p.floor(todo), p.StartTS+1))\n", "	chosen := max(p.MinCommitTS, p.StartTS+1, tx.locks.MaxTS()+1)\n	for range 2000 {\n		tx.locks.Idle()\n	}\n	tx.claim = tx.locks.Claim(tx.domain, p.StartTS, keys)\n	tx.claim.Decide(chosen)\n",
			},
		},
	},
	{
		name: "txn-timestamp-of-an-earlier-term", file: timestampsFile, pkg: commandsPkg,
		run: "TestFirstChoiceOfATerm", tries: 1,
		change: [][2]string{
			{"	if before.tenure == at {\n", "	if before.tenure.term > 0 {\n"},
			{"	return s.mu.standings[regionID].tenure == at\n", "	return true\n"},
		},
	},
	{
		name: "txn-timestamp-of-an-earlier-term-in-a-cluster", file: timestampsFile, pkg: suitePkg,
		run: "TestCommitsOfALaterLeader", tries: 3,
		change: [][2]string{{"	locks.Raise(s.mu.seen)\n", ""}},
	},
	{
		name: "txn-released-locks-push-nothing", file: pessimisticFile, pkg: suitePkg,
		run: "TestLockedReadsAreOfTheirTimestamp", tries: 2,
		change: [][2]string{
			{
				"	if forUpdateTS == mvcc.TsMax || e.raise(ctx, forUpdateTS) != nil {\n",
				"	if false {\n",
			},
		},
	},
	{
		name: "txn-timestamp-of-an-earlier-term-in-a-model", file: timestampsFile, pkg: modelPkg,
		run: "TestHistories", tries: 2,
		args: []string{"-seeds", "300"}, change: [][2]string{{"	locks.Raise(s.mu.seen)\n", ""}},
	},
	{
		name: "txn-released-locks-push-nothing-in-a-model", file: pessimisticFile, pkg: modelPkg,
		run: "TestHistories", tries: 1,
		args: []string{"-seeds", "300"},
		change: [][2]string{
			{
				"	if forUpdateTS == mvcc.TsMax || e.raise(ctx, forUpdateTS) != nil {\n",
				"	if false {\n",
			},
		},
	},
	{
		name: "txn-claim-ends-with-the-term-in-a-model", file: "kv/transaction/memlock/memlock.go",
		pkg: modelPkg, run: "TestHistories", tries: 1,
		args:   []string{"-seeds", "300"},
		change: [][2]string{{"now <= c.domain.Term {", "now < c.domain.Term {"}},
	},
	{
		name: "txn-locks-taken-away-push-nothing", file: pessimisticFile, pkg: commandsPkg,
		run: "TestLocksThatGoPushLaterCommits", tries: 1,
		change: [][2]string{{"	tx.times.doubt(tx.domain.RegionID)\n", ""}},
	},
	{
		name: "txn-choice-does-not-look-again", file: executorFile, pkg: commandsPkg,
		run: "TestLocksThatGoMeanwhile", tries: 1,
		change: [][2]string{
			{
				"	if at != term || does.chooses && !e.times.synced(c.GetRegionId(), tenureOf(c, term)) {\n", "	if at != term {\n",
			},
		},
	},
	{
		name: "txn-doubt-forgotten-by-a-fetch-under-way", file: timestampsFile, pkg: commandsPkg,
		run: "TestDoubtDuringASync", tries: 1,
		change: [][2]string{
			{"	if now.doubts == before.doubts { // else", "	if true { // else"},
		},
	},
	{
		name: "txn-lost-locks-of-readers-not-told", file: "kv/client/txn/commit.go",
		pkg: "./kv/client/txn", run: "TestLockedReadsOfALostLock", tries: 1,
		change: [][2]string{{"		err := t.locks.kept(ctx, t)\n", "		var err error\n"}},
	},
	{
		name: "txn-future-reads-are-believed", file: timestampsFile, pkg: commandsPkg,
		run: "TestTimestampsOfTheFuture", tries: 1,
		change: [][2]string{
			{
				"ahead time.Duration) error {\n	if s == nil || s.reached(ts, ahead) {\n		return nil\n	}\n	if err :=",
				"ahead time.Duration) error {\n	if true {\n		return nil\n	}\n	if err :=",
			},
		},
	},
	{
		name: "txn-checks-of-absence-are-no-reads", file: prewriteFile, pkg: commandsPkg,
		run: "TestChecksOfAbsenceAreReads", tries: 1,
		change: [][2]string{
			{"	if reads { // they", "	if reads && false { // they"},
			{"	if reads && !e.raiseNow(p.StartTS) {\n", "	if reads && false {\n"},
		},
	},
	{
		name: "txn-client-timestamp-ignored", file: prewriteFile, pkg: commandsPkg,
		run: "TestTranscripts", tries: 1,
		change: [][2]string{
			{"tx.claim.Decide(max(p.floor(todo), p.StartTS+1))", "tx.claim.Decide(p.StartTS+1)"},
		},
	},
	{
		name: "txn-fall-back-forgotten-at-a-retry", file: prewriteFile, pkg: commandsPkg,
		run: "TestTranscripts", tries: 1,
		change: [][2]string{
			{
				"	if !tx.chooses || len(todo) == 0 || own.plain || p.OnePC && own.any {\n",
				"	if !tx.chooses || len(todo) == 0 {\n",
			},
			{
				"	if own.plain || chosen == 0 && len(todo) > 0 {\n",
				"	if chosen == 0 && len(todo) > 0 {\n",
			},
		},
	},
	{
		name: "txn-flag-dropped-at-the-commit", file: finishFile, pkg: commandsPkg,
		run: "TestTranscripts", tries: 1,
		change: [][2]string{
			{
				"			OverlappedRollback: slices.Contains(l.RollbackTS, commitTS),\n",
				"			OverlappedRollback: slices.Contains(l.RollbackTS, 0),\n",
			},
		},
	},
	{
		name: "txn-rollback-under-a-foreign-lock-not-noted", file: finishFile, pkg: commandsPkg,
		run: "TestTranscripts", tries: 1,
		change: [][2]string{
			{
				"	if foreign != nil && foreign.AsyncCommit &&",
				"	if false && foreign.AsyncCommit &&",
			},
		},
	},
	{
		name: "txn-time-ends-an-asynchronous-commit", file: "kv/transaction/commands/status.go",
		pkg: suitePkg, run: "TestAsyncCommitOfADeadClient", tries: 1,
		change: [][2]string{{"	if l.AsyncCommit && !q.ForceSyncCommit {\n", "	if false {\n"}},
	},
	{
		name: "txn-missing-secondary-can-still-come", file: "kv/transaction/commands/secondary.go",
		pkg: commandsPkg, run: "TestTranscripts", tries: 1,
		change: [][2]string{
			{
				"	return nil, 0, tx.rollbackMissing(key, startTS, l, rec, true)\n",
				"	return nil, 0, nil\n",
			},
		},
	},
	{
		name: "txn-client-rolls-back-what-may-be-committed", file: chosenFile,
		pkg: "./kv/client/txn", run: "TestAnswersThatNeverCome", tries: 1,
		change: [][2]string{
			{
				"	// Nothing is rolled back here: if all keys are locked, the transaction has happened.\n",
				"	m.cleanUp()\n	if true {\n		return &UnknownError{err}\n	}\n",
			},
		},
	},
	{
		name: "txn-lost-answer-called-failed", file: chosenFile, pkg: suitePkg,
		run: "TestAsyncCommitOfADeadClient", tries: 1,
		change: [][2]string{{"	return ch.mu.lost\n", "	return false\n"}},
	},
	{
		name: "txn-resolver-takes-the-primary-alone", file: "kv/client/txn/resolve.go",
		pkg: suitePkg, run: "TestAsyncCommitOfADeadClient", tries: 1,
		change: [][2]string{
			{
				"	of, err := c.secondaries(ctx, primary.Secondaries, l.LockVersion)\n",
				"	of, err := c.secondaries(ctx, nil, l.LockVersion)\n",
			},
		},
	},
	{
		name: "txn-lock-forgets-the-rollback", file: pessimisticFile, pkg: commandsPkg,
		run: "TestTranscripts", tries: 1,
		change: [][2]string{
			{
				"	case rec.RolledBack():\n		return abortf(\"PessimisticLockRolledBack",
				"	case false:\n		return abortf(\"PessimisticLockRolledBack",
			},
		},
	},
	{
		name: "txn-lost-lock-is-always-forgiven", file: pessimisticFile, pkg: commandsPkg,
		run: "TestTranscripts", tries: 1,
		change: [][2]string{
			{
				" || newest != nil && newest.CommitTS >= p.StartTS {\n",
				" || newest != nil && false {\n",
			},
		},
	},
	{
		name: "txn-lock-passes-newer-commits", file: pessimisticFile, pkg: commandsPkg,
		run: "TestCountersUnderPessimisticLocks", tries: 3,
		change: [][2]string{
			{
				"	if err != nil || newer == nil {\n		return err\n	}\n	return &ConflictError{", "	if err != nil || newer == nil || true {\n		return err\n	}\n	return &ConflictError{",
			}, {"tx.Version(k.Key, p.ForUpdateTS)", "tx.Version(k.Key, p.StartTS)"},
		},
	},
	{
		name: "txn-one-phase-leaves-locks", file: prewriteFile, pkg: commandsPkg,
		run: "TestTranscripts", tries: 1,
		change: [][2]string{{"	if m.held != nil {\n		tx.DeleteLock(m.Key)\n	}\n", ""}},
	},
	{
		name: "txn-expected-lock-ignored", file: prewriteFile, pkg: commandsPkg,
		run: "TestTranscripts", tries: 1,
		change: [][2]string{
			{
				"		m.held = l\n		if err := m.mayReplace(p, l); err != nil {\n",
				"		m.held, m.ExpectedForUpdateTS = l, 0\n		if err := m.mayReplace(p, l); err != nil {\n",
			},
		},
	},
	{
		name: "txn-wake-up-is-lost", file: "kv/transaction/commands/wait.go", pkg: commandsPkg,
		run: "TestWaitersTakeTheLock", tries: 1,
		change: [][2]string{
			{"m.Delete && m.CF == engine.CFLock {", "m.Delete && m.CF == engine.CFWrite {"},
			{"	lookAgain = 200 * time.Millisecond\n", "	lookAgain = time.Hour\n"},
		},
	},
	{
		name: "txn-deadlock-edge-is-never-removed", file: "kv/transaction/commands/wait.go",
		pkg: commandsPkg, run: "TestWaitersTakeTheLock|TestWaitsEnd", tries: 1,
		change: [][2]string{{"	w.e.detector.Remove(ctx, w.edge)\n", "	_ = ctx\n"}},
	},
	{
		name: "txn-deadlock-of-two-only", file: "kv/transaction/deadlock/deadlock.go",
		pkg: "./kv/transaction/deadlock", run: "TestCircles|TestAgainstATwin", tries: 1,
		change: [][2]string{{"				queue = append(queue, holder)\n", ""}},
	},
	{
		name: "txn-commit-right-behind-the-start", file: prewriteFile, pkg: suitePkg,
		run: "TestListAppend", tries: 3,
		change: [][2]string{
			{
				"	chosen := tx.claim.Decide(max(p.floor(todo), p.StartTS+1))\n",
				"	tx.claim.Decide(0)\n	chosen := p.StartTS + 1\n",
			},
		},
	},
}

// plant writes the file with the bug and returns the overlay that puts it in place.
func plant(t *testing.T, root string, b bug) string {
	file := filepath.Join(root, b.file)
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	text := string(data)
	for _, c := range b.change {
		require.Equal(t, 1, strings.Count(text, c[0]), "the place of the bug is gone: %s", c[0])
		text = strings.Replace(text, c[0], c[1], 1)
	}
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.go")
	require.NoError(t, os.WriteFile(bad, []byte(text), 0o600))
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{file: bad}})
	require.NoError(t, err)
	path := filepath.Join(dir, "overlay.json")
	require.NoError(t, os.WriteFile(path, overlay, 0o600))
	return path
}

var (
	failed = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)`)
	reason = regexp.MustCompile(`(?m)^.*(Error:|crash before|not linearizable|panic:).*$`)
)

// TestPlanted builds each bug in; the named tests must fail.
func TestPlanted(t *testing.T) {
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	for _, b := range bugs {
		t.Run(b.name, func(t *testing.T) {
			overlay := plant(t, root, b) // also without -plant: the place of the bug must exist
			if !*flagRun {
				t.Skip("minutes for each bug: make planted, or -args -plant")
			}
			begun := time.Now()
			for try := 1; try <= b.tries; try++ {
				args := []string{
					"test", "-count=1", "-overlay", overlay, "-failfast", "-run", b.run, "-timeout",
					"10m", b.pkg,
				}
				if len(b.args) > 0 {
					args = append(append(args, "-args"), b.args...)
				}
				cmd := exec.Command("go", args...)
				cmd.Dir = root
				// also for binaries that the test builds
				cmd.Env = append(cmd.Environ(), "GOFLAGS=-overlay="+overlay)
				out, err := cmd.CombinedOutput()
				if err == nil {
					continue
				}
				found := failed.FindSubmatch(out)
				require.True(t, found != nil || reason.Match(out), "neither found nor passed: %s",
					out)
				name := "the process"
				if found != nil {
					name = string(found[1])
				}
				t.Logf("found in try %d of %d, after %.0f s, by %s: %s", try, b.tries,
					time.Since(begun).Seconds(), name,
					strings.TrimSpace(string(reason.Find(out))))
				return
			}
			t.Errorf("not found in %d tries", b.tries)
		})
	}
}
