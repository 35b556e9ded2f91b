package memengine_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/enginetest"
	"github.com/tinykv/tinykv/kv/engine/memengine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var factory = enginetest.Factory{
	Name:     memengine.Name,
	Volatile: true,
	Open:     func(string) (engine.Engine, error) { return memengine.Open(), nil },
}

func TestConformance(t *testing.T) { enginetest.Run(t, factory) }

func TestDifferential(t *testing.T) { enginetest.RunDifferential(t, factory) }
