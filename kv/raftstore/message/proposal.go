package message

import "github.com/tinykv/tinykv/kv/regionerr"

// Proposal is one entry that raft has taken into the log, and the commands in it that wait for an
// answer.
//
// Before the proposal an error may be definite: a command that never was in a log is refused by
// Callback.Fail. From the proposal on, only the entry's fate decides, and this type has no other
// endings: it was applied, refused when it was applied, or overwritten by another leader's entry.
// All else leaves the outcome unknown, whatever happened to the peer or the store: the followers
// may have the entry, and the next leader may commit it.
//
// Invariant: a callback in a Proposal is answered by the Proposal. Callback.Done and Fail, called
// by mistake, say unknown.
//
// Not safe for concurrent use; its holder ends it, once.
type Proposal struct {
	index, term uint64
	size        int
	cbs         []*Callback
	// Stages are when the entry came to where it is.
	Stages Stages
	// Traced: the answer says when the entry passed its stages.
	Traced bool
}

// NewProposal takes over the callbacks of the commands in the entry at index. size is how many
// bytes they count for.
func NewProposal(index, term uint64, size int, cbs ...*Callback) Proposal {
	for _, cb := range cbs {
		if cb != nil {
			cb.proposed.Store(true)
		}
	}
	return Proposal{index: index, term: term, size: size, cbs: cbs}
}

// Index is the entry's place in the log.
func (p *Proposal) Index() uint64 { return p.index }

// Size is how many bytes the commands count for.
func (p *Proposal) Size() int { return p.size }

// Commands is how many commands wait for the entry.
func (p *Proposal) Commands() int { return len(p.cbs) }

// Is tells whether the entry at index, of the given term, is this one.
func (p *Proposal) Is(index, term uint64) bool { return p.index == index && p.term == term }

// Applied answers that the entry has taken effect, and that this is in the engine.
func (p *Proposal) Applied(res Result) {
	if p.Traced {
		res.Answer = res.Answer.with(p.Stages)
	}
	if res.Err != nil {
		p.RefusedAtApply(res.Err)
		return
	}
	p.end(res)
}

// RefusedAtApply answers that the entry was applied without effect, as it was on every replica.
func (p *Proposal) RefusedAtApply(err error) { p.end(Result{Err: err}) }

// Overwritten answers that the committed entry at index is another leader's. An entry elsewhere, or
// of the same term, proves nothing.
func (p *Proposal) Overwritten(index, term uint64) {
	err := &regionerr.OverwrittenError{Term: term}
	if index != p.index || term == p.term {
		p.Unknown(err)
		return
	}
	p.end(Result{Err: err})
}

// Unknown answers that the outcome will not be known here.
func (p *Proposal) Unknown(cause error) {
	p.end(Result{Err: &regionerr.UnknownError{Cause: cause}})
}

func (p *Proposal) end(res Result) {
	for _, cb := range p.cbs {
		cb.answer(res)
	}
	p.cbs = nil
}
