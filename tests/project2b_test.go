package tests

import "testing"

func TestBasic2B(t *testing.T)      { round{clients: 1}.run(t) }
func TestConcurrent2B(t *testing.T) { round{clients: 5}.run(t) }
func TestUnreliable2B(t *testing.T) { round{clients: 5, unreliable: true}.run(t) }
func TestManyPartitionsOneClient2B(t *testing.T) {
	round{clients: 1, partitions: true, minOps: 50}.run(t)
}
func TestManyPartitionsManyClients2B(t *testing.T) { round{clients: 5, partitions: true}.run(t) }
func TestPersistOneClient2B(t *testing.T) {
	round{clients: 1, crash: true, minOps: 50}.run(t)
}
func TestPersistConcurrent2B(t *testing.T) { round{clients: 5, crash: true}.run(t) }
func TestPersistConcurrentUnreliable2B(t *testing.T) {
	round{clients: 5, crash: true, unreliable: true, minOps: 100}.run(t)
}
func TestPersistPartition2B(t *testing.T) {
	round{clients: 5, crash: true, partitions: true, minOps: 100}.run(t)
}
func TestPersistPartitionUnreliable2B(t *testing.T) {
	round{clients: 5, crash: true, partitions: true, unreliable: true, minOps: 50}.run(t)
}
