package tests

import "testing"

func TestOneSnapshot2C(t *testing.T) {
	round{clients: 3, crash: true, partitions: true, maxRaftLog: 10, minSnaps: 1}.run(t)
}
func TestSnapshotRecover2C(t *testing.T) {
	round{clients: 1, crash: true, maxRaftLog: 20, minOps: 50}.run(t)
}
func TestSnapshotRecoverManyClients2C(t *testing.T) {
	round{clients: 10, crash: true, maxRaftLog: 20}.run(t)
}
func TestSnapshotUnreliable2C(t *testing.T) {
	round{clients: 5, unreliable: true, maxRaftLog: 20, minOps: 100}.run(t)
}
func TestSnapshotUnreliableRecover2C(t *testing.T) {
	round{clients: 5, unreliable: true, crash: true, maxRaftLog: 20, minOps: 50}.run(t)
}
func TestSnapshotUnreliableRecoverConcurrentPartition2C(t *testing.T) {
	round{
		clients: 5, unreliable: true, crash: true, partitions: true, maxRaftLog: 20, minOps: 30,
	}.run(t)
}
