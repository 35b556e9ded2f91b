package badgerengine_test

import (
	"flag"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/badgerengine"
	"github.com/tinykv/tinykv/kv/engine/enginetest"
)

func TestMain(m *testing.M) { enginetest.Main(m, factory) }

var factory = enginetest.Factory{
	Name: badgerengine.Name,
	Open: func(dir string) (engine.Engine, error) {
		return badgerengine.Open(engine.Options{
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
	{Name: "table index", Glob: "*.idx"},
	{Name: "value log", Glob: "*.vlog", Used: enginetest.NonZero},
	{Name: "manifest", Glob: "MANIFEST"},
	{Name: "sync mark", Glob: "SYNCED"},
}

// TestDamage holds badger to what the wrapper can make of it: never a wrong value, and no loss by
// damage to the files the wrapper watches. Its tables have no checksums: keys that damage hides
// there are not found, in silence. That is one reason why badger is not the default.
func TestDamage(t *testing.T) {
	rounds := 20
	if *long {
		rounds = 1000
	}
	silent := 0
	for class, counts := range enginetest.RunDamage(t, factory, damageClasses, rounds) {
		if n := counts["WRONG"]; n > 0 {
			t.Errorf("%s: %d wrong values", class, n)
		}
		if n := counts["LOSS"]; n > 0 && class != "table" && class != "table index" {
			t.Errorf("%s: %d silent losses", class, n)
		}
		silent += counts["LOSS"]
	}
	if silent == 0 {
		t.Error(
			"no silent loss in a damaged table: the warning at start and docs/engine.md say there are")
	}
}

// TestWarning: each start with badger warns once of what it cannot do.
func TestWarning(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	e, err := badgerengine.Open(engine.Options{
		Dir: t.TempDir(), CacheBytes: 1 << 20, MemTableBytes: 1 << 20, Logger: zap.New(core),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	warned := logs.FilterMessageSnippet("no checksums").FilterMessageSnippet("not found")
	if warned.Len() != 1 || logs.Len() != 1 {
		t.Errorf("%d warnings, %d of all: %v", warned.Len(), logs.Len(), logs.All())
	}
}

func TestFullDisk(t *testing.T) { enginetest.RunFullDisk(t, factory) }
