package tikv

import (
	"errors"
	"time"

	"github.com/pingcap/kvproto/pkg/tikvpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
)

// arrived is a large BatchCommandsRequest as it came: its commands are decoded one after another,
// since each takes memory of its own then.
type arrived struct {
	commands [][]byte // parts of the message
	ids      []uint64
}

// Fields of BatchCommandsRequest.
const (
	fieldRequests = 1
	fieldIDs      = 2
)

var errNoMessage = errors.New("it is no encoding of a message")

// split finds the commands of a message, and their ids. Unknown fields are skipped.
func split(body []byte) (*arrived, error) {
	a := &arrived{}
	for len(body) > 0 {
		field, kind, n := protowire.ConsumeTag(body)
		if n < 0 {
			return nil, errNoMessage
		}
		value := body[n:]
		var err error
		switch {
		case field == fieldRequests && kind == protowire.BytesType:
			var command []byte
			command, n = protowire.ConsumeBytes(value)
			a.commands = append(a.commands, command)
		case field == fieldIDs && kind == protowire.BytesType:
			var packed []byte
			packed, n = protowire.ConsumeBytes(value)
			err = a.addIDs(packed)
		case field == fieldIDs && kind == protowire.VarintType:
			var id uint64
			id, n = protowire.ConsumeVarint(value)
			a.ids = append(a.ids, id)
		case field == fieldRequests || field == fieldIDs:
			err = errNoMessage
		default:
			n = protowire.ConsumeFieldValue(field, kind, value)
		}
		if n < 0 || err != nil {
			return nil, errNoMessage
		}
		body = value[n:]
	}
	return a, nil
}

func (a *arrived) addIDs(packed []byte) error {
	for len(packed) > 0 {
		id, n := protowire.ConsumeVarint(packed)
		if n < 0 {
			return errNoMessage
		}
		a.ids, packed = append(a.ids, id), packed[n:]
	}
	return nil
}

// receive takes messages until the client ends the stream.
func (b *batchStream) receive() error {
	for {
		body, err := b.rpc.RecvBytes()
		if err != nil {
			return err
		}
		c := &charge{hold: b.rpc.Hold(), decoding: true}
		err = status.FromContextError(b.ctx.Err()).Err()
		switch {
		case err != nil:
		case c.hold.Left() > 0:
			err = b.beginLarge(body, c)
		default:
			err = b.beginAll(body)
		}
		b.held.decoded(c)
		if err != nil {
			return err
		}
		b.flush() // waits while the client does not take what there is
	}
}

// beginAll begins the requests of a message, if it is one.
func (b *batchStream) beginAll(body []byte) error {
	m := new(tikvpb.BatchCommandsRequest)
	if err := m.Unmarshal(body); err != nil {
		return status.Errorf(codes.Internal, "unmarshal %T: %v", m, err)
	}
	if len(m.Requests) != len(m.RequestIds) {
		return errUneven(len(m.Requests), len(m.RequestIds))
	}
	b.begin(m)
	return nil
}

func errUneven(requests, ids int) error {
	return status.Errorf(codes.InvalidArgument, "a batch of %d requests with %d ids", requests, ids)
}

// beginLarge begins the requests of a large message, as far as it is one. It waits while too much
// of it is decoded and not answered.
func (b *batchStream) beginLarge(body []byte, c *charge) error {
	m, err := split(body)
	if err != nil {
		return status.Errorf(codes.Internal, "unmarshal a batch of commands: %v", err)
	}
	if len(m.commands) != len(m.ids) {
		return errUneven(len(m.commands), len(m.ids))
	}
	for i, command := range m.commands {
		req := new(request)
		if !b.held.keep(b.ctx, c, req, int64(len(command))) {
			return status.FromContextError(b.ctx.Err()).Err()
		}
		if err := req.Unmarshal(command); err != nil {
			b.held.give(req)
			return status.Errorf(codes.Internal, "unmarshal command %d of a batch: %v", i, err)
		}
		began := time.Now() // one for all would count the wait
		if b.beginOne(m.ids[i], req, began) {
			b.service.timings[getType].Note(time.Since(began), 1)
		}
	}
	return nil
}
