// Package faultfs makes storage fail on purpose, for tests: a Controller counts the operations of
// all storage layers of a store and stops the world at the k-th, and MemFS is a file system in
// memory that knows what was synced and can be cloned as a crash would leave it.
//
// The raft log takes a MemFS (raftlog.Options.FS); the engine is wrapped by package enginefault.
// When both share one Controller, a test can run a scenario once to count its operations, and then
// once for every k with CrashAt(k): from the k-th operation on everything fails with ErrCrashed;
// the test then takes the crash clones of both and opens the store on them.
package faultfs

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
)

// ErrCrashed is the answer to every operation at and after the crash point.
var ErrCrashed = errors.New("faultfs: the machine is off")

// ErrNoSpace is what a full disk answers.
var ErrNoSpace error = syscall.ENOSPC

// Op is an operation about to be carried out: one that changes what is stored, or with SetReads
// any.
type Op struct {
	// N counts the operations of all layers that share the controller, from 1.
	N int64
	// Layer tells who asks: "fs", "engine" or the name given by the test.
	Layer string
	// Kind is create, write, sync, allocate, rename, remove, syncdir, commit, ...; with SetReads
	// also open, list, read, get, seek, next.
	Kind string
	// Name is the file, if any.
	Name string
}

func (o Op) String() string { return fmt.Sprintf("%d %s %s %s", o.N, o.Layer, o.Kind, o.Name) }

// Controller decides about operations. The zero value lets everything pass and counts it. A nil
// *Controller is usable and counts nothing.
type Controller struct {
	mu    sync.Mutex
	n     int64
	reads bool
	check func(Op) error
	trace func(Op)
}

// Set installs the decision for each operation from now on; nil lets all pass. An error is the
// operation's answer, and the operation has no effect. check may be called by several goroutines at
// the same time; while it blocks, only its own operation waits.
func (c *Controller) Set(check func(Op) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.check = check
}

// Trace shows each operation to f; nil ends it.
func (c *Controller) Trace(f func(Op)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.trace = f
}

// Step is called by the layers before each operation.
func (c *Controller) Step(layer, kind, name string) error {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	c.n++
	op := Op{c.n, layer, kind, name}
	if c.trace != nil {
		c.trace(op)
	}
	check := c.check
	c.mu.Unlock()
	if check == nil {
		return nil
	}
	return check(op)
}

// SetReads makes the controller see reads as well, and decide about them.
func (c *Controller) SetReads(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reads = on
}

// StepRead is Step for an operation that changes nothing.
func (c *Controller) StepRead(layer, kind, name string) error {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	reads := c.reads
	c.mu.Unlock()
	if !reads {
		return nil
	}
	return c.Step(layer, kind, name)
}

// Count is the number of operations so far.
func (c *Controller) Count() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// CrashAt lets k-1 operations pass and no more.
func CrashAt(k int64) func(Op) error {
	return func(o Op) error {
		if o.N >= k {
			return ErrCrashed
		}
		return nil
	}
}

// FailAt makes the k-th operation fail with err; those after it pass.
func FailAt(k int64, err error) func(Op) error {
	return func(o Op) error {
		if o.N == k {
			return err
		}
		return nil
	}
}

// FailKind makes every operation of a kind fail with err.
func FailKind(kind string, err error) func(Op) error {
	return func(o Op) error {
		if o.Kind == kind {
			return err
		}
		return nil
	}
}
