package badgerengine_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/badgerengine"
	"github.com/tinykv/tinykv/kv/engine/enginetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var factory = enginetest.Factory{
	Name: badgerengine.Name,
	Open: func(dir string) (engine.Engine, error) {
		return badgerengine.Open(engine.Options{Dir: dir, CacheBytes: 1 << 20, MemTableBytes: 1 << 20})
	},
}

func TestConformance(t *testing.T) { enginetest.Run(t, factory) }
