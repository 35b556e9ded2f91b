package message

import (
	"context"
	"sync/atomic"

	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
)

// Result is the answer to a command. Err is nil or one of the errors of package regionerr.
type Result struct {
	Err error
	// Region is the region as of the answer, for reads and admin commands.
	Region *metapb.Region
	// Index is an index of the region's log that is applied: of a write's own entry, or of a later
	// one.
	Index uint64
	// Answer is what admin commands, compare-and-swaps and traced writes have to say besides; nil
	// for others. It is one pointer, because every write has a Result.
	Answer *Answer
}

// Answer is the answer to an admin command, or to a compare-and-swap. Stages is set for traced
// writes.
type Answer struct {
	Admin  *raft_cmdpb.AdminResponse
	Swap   *Swap
	Stages *Stages
}

// AdminAnswer is the Answer of an admin command.
func AdminAnswer(r *raft_cmdpb.AdminResponse) *Answer { return &Answer{Admin: r} }

// Admin is the answer to an admin command that was carried out.
func (r Result) Admin() *raft_cmdpb.AdminResponse {
	if r.Answer == nil {
		return nil
	}
	return r.Answer.Admin
}

// Swap is the answer to a compare-and-swap that was applied.
func (r Result) Swap() *Swap {
	if r.Answer == nil {
		return nil
	}
	return r.Answer.Swap
}

// Stages are those of a traced write; nil for others.
func (r Result) Stages() *Stages {
	if r.Answer == nil {
		return nil
	}
	return r.Answer.Stages
}

// Callback is the one-shot answer to a command: it is answered exactly once, on every path
// (applied, refused, overtaken by another term, peer destroyed, store stopping, deadline). A nil
// *Callback needs no answer. Done and Wait are safe for concurrent use.
//
// Once the command is proposed, the answer is up to the Proposal.
type Callback struct {
	answered atomic.Bool
	proposed atomic.Bool
	done     chan struct{}
	call     func(Result)
	res      Result
}

// NewCallback returns a callback to wait on.
func NewCallback() *Callback { return &Callback{done: make(chan struct{})} }

// NewCallbackFunc returns a callback that calls f with the answer, instead of one to wait on. f
// runs on the worker that answers, which it must not hold up.
func NewCallbackFunc(f func(Result)) *Callback { return &Callback{call: f} }

// Done answers a command that was not proposed. The first answer counts, later ones are ignored, so
// that it never blocks a worker.
func (c *Callback) Done(res Result) {
	if c != nil && c.proposed.Load() {
		res = Result{Err: &regionerr.UnknownError{Cause: res.Err}}
	}
	c.answer(res)
}

func (c *Callback) answer(res Result) {
	if c == nil || c.answered.Swap(true) {
		return
	}
	if c.call != nil {
		c.call(res)
		return
	}
	c.res = res
	close(c.done)
}

// Fail refuses a command that was not proposed: an error here may be taken for "nothing was done".
func (c *Callback) Fail(err error) { c.Done(Result{Err: err}) }

// Wait returns the answer to a callback made by NewCallback, or the context's error if that ends
// first: then the command may still be carried out later.
func (c *Callback) Wait(ctx context.Context) (Result, error) {
	select {
	case <-c.done:
		return c.res, nil
	default:
	}
	select {
	case <-c.done:
		return c.res, nil
	case <-ctx.Done():
		return Result{}, ctx.Err()
	}
}

// Answered tells whether Done was called.
func (c *Callback) Answered() bool { return c == nil || c.answered.Load() }
