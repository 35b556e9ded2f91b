package message

import (
	"encoding/binary"
	"fmt"

	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
)

// Conditional requests are decided when their entry is applied: compare-and-swaps, deletes of
// ranges, and what ends the life of keys. Each is alone in its entry, with at most one identity, so
// that the entry's answer is the request's own, and so that a search for the identity finds what
// became of it.

// Swap is the outcome of a compare-and-swap.
type Swap struct {
	// Swapped: the value was as expected, and the change was made.
	Swapped bool
	// Previous is the value that it was compared with; Found is false if there was none.
	Previous []byte
	Found    bool
}

// AppendSwap appends a compare-and-swap to a payload.
func AppendSwap(buf []byte, r *raft_cmdpb.CompareAndSwapRequest) []byte {
	return appendConditional(buf,
		&raft_cmdpb.Request{CmdType: raft_cmdpb.CmdType_CompareAndSwap, CompareAndSwap: r})
}

// AppendDeleteRange appends a delete of [start, end) to a payload; an empty end is the end of the
// key space.
func AppendDeleteRange(buf []byte, cf string, start, end []byte) []byte {
	return appendConditional(buf, &raft_cmdpb.Request{
		CmdType:     raft_cmdpb.CmdType_DeleteRange,
		DeleteRange: &raft_cmdpb.DeleteRangeRequest{Cf: cf, Start: start, End: end},
	})
}

// AppendExpire appends what raises a region's expiry floor and removes keys that have expired to a
// payload.
func AppendExpire(buf []byte, r *raft_cmdpb.ExpireRequest) []byte {
	return appendConditional(buf,
		&raft_cmdpb.Request{CmdType: raft_cmdpb.CmdType_Expire, Expire: r})
}

func appendConditional(buf []byte, r *raft_cmdpb.Request) []byte {
	data, err := r.Marshal()
	if err != nil {
		panic(fmt.Sprintf("message: marshal %v: %v", r.CmdType, err))
	}
	buf = append(buf, tagRequests)
	buf = binary.AppendUvarint(buf, uint64(len(data)))
	return append(buf, data...)
}

// isConditional tells from the first bytes of a request whether it is one: generated code writes
// the type first.
func isConditional(request []byte) bool {
	if len(request) < 2 || request[0] != tagCmdType {
		return false
	}
	kind := raft_cmdpb.CmdType(request[1])
	return kind == raft_cmdpb.CmdType_CompareAndSwap || kind == raft_cmdpb.CmdType_DeleteRange ||
		kind == raft_cmdpb.CmdType_Expire
}

func decodeConditional(request []byte) (*raft_cmdpb.Request, error) {
	r := new(raft_cmdpb.Request)
	if err := r.Unmarshal(request); err != nil {
		return nil, fmt.Errorf("%w: conditional request: %w", errPayload, err)
	}
	kind := r.CmdType
	if (kind == raft_cmdpb.CmdType_CompareAndSwap) != (r.CompareAndSwap != nil) ||
		(kind == raft_cmdpb.CmdType_DeleteRange) != (r.DeleteRange != nil) ||
		(kind == raft_cmdpb.CmdType_Expire) != (r.Expire != nil) || r.Put != nil ||
		r.Delete != nil {
		return nil, fmt.Errorf("%w: %v does not say what to do", errPayload, r.CmdType)
	}
	return r, nil
}
