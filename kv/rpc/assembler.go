package rpc

import (
	"encoding/binary"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// prefixSize is what stands before every message: one byte that says whether it is compressed, four of length.
const prefixSize = 5

// assembler puts a message together from the frames it comes in.
type assembler struct {
	msg []byte
	// need is the size of the message with its prefix, once that is known.
	need int
	// early is how many bytes of an answer were given back to the server's window already.
	early int64
}

func (a *assembler) started() bool { return len(a.msg) > 0 }

// add takes bytes from data. When a message is complete it is returned with its prefix: within data, or kept, in
// memory of its own.
func (a *assembler) add(data []byte, limit int) (msg []byte, kept bool, rest []byte, err error) {
	if len(a.msg) < prefixSize {
		if len(a.msg) == 0 && len(data) >= prefixSize {
			if a.need, err = messageSize(data, limit); err != nil {
				return nil, false, nil, err
			}
			if len(data) >= a.need { // the usual case: nothing to put together
				return data[:a.need:a.need], false, data[a.need:], nil
			}
		}
		n := min(prefixSize-len(a.msg), len(data))
		a.msg = append(a.msg, data[:n]...)
		data = data[n:]
		if len(a.msg) < prefixSize {
			return nil, false, nil, nil
		}
		if a.need, err = messageSize(a.msg, limit); err != nil {
			return nil, false, nil, err
		}
		// Room for all of it, unless that is much: a size costs its sender nothing.
		a.msg = append(make([]byte, 0, min(a.need, 64<<10)), a.msg...)
	}
	n := min(a.need-len(a.msg), len(data))
	if len(a.msg)+n > cap(a.msg) { // it was charged for
		a.msg = append(make([]byte, 0, a.need), a.msg...)
	}
	a.msg = append(a.msg, data[:n]...)
	if len(a.msg) < a.need {
		return nil, false, nil, nil
	}
	return a.msg, true, data[n:], nil
}

// messageSize reads a message's prefix.
func messageSize(prefix []byte, limit int) (int, error) {
	if prefix[0] > 1 {
		return 0, status.Errorf(codes.Internal, "unknown message flag %d", prefix[0])
	}
	n := binary.BigEndian.Uint32(prefix[1:])
	if uint64(n) > uint64(limit) {
		return 0, status.Errorf(codes.ResourceExhausted, "received message larger than max (%d vs. %d)", n, limit)
	}
	return prefixSize + int(n), nil
}
