// Package engines is the table of engine backends: the one place that links them all.
package engines

import (
	"fmt"
	"slices"
	"strings"

	"github.com/tinykv/tinykv/kv/engine"
	"github.com/tinykv/tinykv/kv/engine/badgerengine"
	"github.com/tinykv/tinykv/kv/engine/pebbleengine"
)

// Default is the backend that is used when the configuration names none. Why: docs/engine.md.
const Default = pebbleengine.Name

var backends = map[string]func(engine.Options) (engine.Engine, error){
	badgerengine.Name: badgerengine.Open,
	pebbleengine.Name: pebbleengine.Open,
}

// Names lists the backends that Open knows, in order.
func Names() []string {
	var names []string
	for name := range backends {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Open opens the backend called name; empty means the default.
func Open(name string, opts engine.Options) (engine.Engine, error) {
	if name == "" {
		name = Default
	}
	open, ok := backends[name]
	if !ok {
		return nil, fmt.Errorf("engine: unknown backend %q (%s)", name, strings.Join(Names(), ", "))
	}
	return open(opts)
}
