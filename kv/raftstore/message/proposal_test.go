package message

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/regionerr"
)

// TestProposalEndings: each ending says what it stands for, and no more.
func TestProposalEndings(t *testing.T) {
	cause := errors.New("cause")
	var unknown *regionerr.UnknownError
	var lost *regionerr.OverwrittenError
	for name, tc := range map[string]struct {
		end   func(*Proposal)
		check func(error)
	}{
		"applied": {func(p *Proposal) { p.Applied(Result{}) }, func(err error) {
			require.NoError(t, err)
		}},
		"refused at apply": {func(p *Proposal) { p.Applied(Result{Err: cause}) }, func(err error) {
			require.Equal(t, cause, err)
		}},
		"overwritten": {func(p *Proposal) { p.Overwritten(7, 3) }, func(err error) {
			require.ErrorAs(t, err, &lost)
		}},
		"another entry": {func(p *Proposal) { p.Overwritten(8, 3) }, func(err error) {
			require.ErrorAs(t, err, &unknown)
		}},
		"same term": {func(p *Proposal) { p.Overwritten(7, 2) }, func(err error) {
			require.ErrorAs(t, err, &unknown)
		}},
		"unknown": {func(p *Proposal) { p.Unknown(cause) }, func(err error) {
			require.ErrorAs(t, err, &unknown)
			require.NotErrorIs(t, err, cause, "the cause must not be taken for the answer")
		}},
	} {
		cb := NewCallback()
		p := NewProposal(7, 2, 10, nil, cb)
		tc.end(&p)
		res, err := cb.Wait(context.Background())
		require.NoError(t, err, name)
		tc.check(res.Err)
	}
}

// TestProposedCommandsAreNotRefused: an answer past a command's Proposal says unknown.
func TestProposedCommandsAreNotRefused(t *testing.T) {
	for _, answer := range []func(*Callback){
		func(c *Callback) { c.Fail(errors.New("not here")) },
		func(c *Callback) { c.Done(Result{}) },
	} {
		cb := NewCallback()
		NewProposal(7, 2, 0, cb)
		answer(cb)
		res, err := cb.Wait(context.Background())
		require.NoError(t, err)
		var unknown *regionerr.UnknownError
		require.ErrorAs(t, res.Err, &unknown)
	}
}
