package transport

import (
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/metapb"
	rspb "github.com/tinykv/tinykv/proto/pkg/raft_serverpb"
)

// minMessage is the length of the shortest encoding that a valid message may have, about: shorter
// ones get no place among the others, so that many empty ones do not take much memory.
const minMessage = 16

// messageTag begins each message of a batch: field 1, of bytes.
const messageTag = 1<<3 | byte(protowire.BytesType)

// received is a raft message with what it points to, so that a batch of them is one allocation.
type received struct {
	rspb.RaftMessage
	from, to metapb.Peer
	epoch    metapb.RegionEpoch
	message  eraftpb.Message
	entry    [1]*eraftpb.Entry // room for message.Entries
}

// DecodeBatch decodes a BatchRaftMessage as its Unmarshal does, with fewer allocations. The
// messages lie in one piece of memory: a part of one that is kept for long should be copied.
func DecodeBatch(data []byte) ([]*rspb.RaftMessage, error) {
	n := 0
	plain, _ := visitMessages(data, func(one []byte) error {
		if len(one) >= minMessage {
			n++
		}
		return nil
	})
	if !plain {
		batch := new(rspb.BatchRaftMessage)
		err := batch.Unmarshal(data)
		return batch.Msgs, err
	}
	slab, msgs := make([]received, n), make([]*rspb.RaftMessage, 0, n)
	_, err := visitMessages(data, func(one []byte) error {
		if len(one) < minMessage {
			m := new(rspb.RaftMessage)
			msgs = append(msgs, m)
			return m.Unmarshal(one)
		}
		r := &slab[0]
		slab = slab[1:]
		r.place(one)
		if err := r.Unmarshal(one); err != nil {
			return err
		}
		if len(r.message.Entries) == 0 {
			r.message.Entries = nil
		}
		msgs = append(msgs, &r.RaftMessage)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return msgs, nil
}

// place has Unmarshal put the parts that the encoding has where there is room for them.
func (r *received) place(data []byte) {
	for len(data) > 0 {
		num, typ, n := protowire.ConsumeField(data)
		if n < 0 {
			return // Unmarshal reports it
		}
		data = data[n:]
		if typ != protowire.BytesType {
			continue
		}
		switch num {
		case 2:
			r.FromPeer = &r.from
		case 3:
			r.ToPeer = &r.to
		case 4:
			r.Message, r.message.Entries = &r.message, r.entry[:0]
		case 5:
			r.RegionEpoch = &r.epoch
		}
	}
}

// visitMessages calls visit with the encoding of each message of a batch. It gives up, with false,
// on what this version of the program does not send.
func visitMessages(data []byte, visit func([]byte) error) (plain bool, err error) {
	for len(data) > 0 {
		if data[0] != messageTag {
			return false, nil
		}
		one, n := protowire.ConsumeBytes(data[1:])
		if n < 0 {
			return false, nil
		}
		if err := visit(one); err != nil {
			return true, err
		}
		data = data[1+n:]
	}
	return true, nil
}
