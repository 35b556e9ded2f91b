//go:build planted

package sim

import "github.com/tinykv/tinykv/raft"

var plantedBug string

func planted(id string) bool { return plantedBug == id }

// Plant switches one planted bug on, here and in raft; "" switches it off.
func Plant(id string) {
	plantedBug = id
	raft.SetPlanted(id)
}
