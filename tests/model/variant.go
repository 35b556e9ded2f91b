package model

// variant is one rule of the protocol changed.
type variant uint8

const (
	right variant = iota
	ackBeforePublish
	ackBeforeSync
	forgottenAtRestart
	writesAfterPrepare
	readyBeforeOwnTerm
	readyWithRollback
	directInOtherTerm
	directAfterReady
	rollbackWithoutProof
	rollbackOnNotProposed
	epochNotCompared
	confVersionNotCompared
	floorIgnored
	floorOfMessageIgnored
	listNotInSnapshot
	proofOfOldAcks
	earlierTombstone
	acksOfQuorum
	acksOfOther
	takeoverInTwo
	targetUninitialized
	destroyedAtT0
	destroyedBeyond
	versionOfMax
	noTakeover
	noExitListed
	noExitAbsent
)
