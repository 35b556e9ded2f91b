package security

import "fmt"

// StoreService is the name under which one run of one store of one cluster answers gRPC's health
// check at its service port. Who asks there for this name learns whether it is this very store that
// answers: any other store, of this cluster or another, and any other program does not know it.
func StoreService(clusterID, storeID uint64, started int64) string {
	return fmt.Sprintf("tinykv.store/%d/%d/%d", clusterID, storeID, started)
}
