package pebbleengine_test

import (
	"flag"
	"testing"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/enginetest"
	"github.com/tinykv/tinykv/kv/engine/pebbleengine"
)

func TestMain(m *testing.M) { enginetest.Main(m, factory) }

var factory = enginetest.Factory{
	Name: pebbleengine.Name,
	Open: func(dir string) (engine.Engine, error) {
		return pebbleengine.Open(engine.Options{
			Dir: dir, CacheBytes: 1 << 20, MemTableBytes: 1 << 20,
		})
	},
}

func TestConformance(t *testing.T) { enginetest.Run(t, factory) }

func TestDifferential(t *testing.T) { enginetest.RunDifferential(t, factory) }

var long = flag.Bool("long", false, "run the long form of the kill and damage tests")

func TestKill(t *testing.T) {
	rounds := 12
	if *long {
		rounds = 200
	}
	enginetest.RunKill(t, factory, rounds)
}

var damageClasses = []enginetest.DamageClass{
	{Name: "table", Glob: "*.sst"},
	{Name: "log", Glob: "*.log", Used: enginetest.NonZero},
	{Name: "manifest", Glob: "MANIFEST-*"},
	{Name: "marker", Glob: "marker.*"},
	{Name: "sync mark", Glob: "SYNCED"},
}

func TestDamage(t *testing.T) {
	rounds := 40
	if *long {
		rounds = 1000
	}
	for class, counts := range enginetest.RunDamage(t, factory, damageClasses, rounds) {
		if n := counts["WRONG"] + counts["LOSS"] + counts["died"]; n > 0 {
			t.Errorf("%s: %d forbidden outcomes", class, n)
		}
	}
}

func TestFullDisk(t *testing.T) { enginetest.RunFullDisk(t, factory) }
