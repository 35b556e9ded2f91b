package engines_test

import (
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/engines"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestOpen(t *testing.T) {
	for _, name := range append(engines.Names(), "") {
		e, err := engines.Open(name,
			engine.Options{Dir: t.TempDir(), CacheBytes: 1 << 20, MemTableBytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		if want := name; e.Name() != want && !(want == "" && e.Name() == engines.Default) {
			t.Fatalf("opened %q as %q", name, e.Name())
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
	_, err := engines.Open("rocks", engine.Options{})
	if err == nil || !strings.Contains(err.Error(), "badger, pebble") {
		t.Fatalf("unknown backend: %v", err)
	}
}
