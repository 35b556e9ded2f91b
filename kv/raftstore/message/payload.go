package message

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/tinykv/tinykv/proto/pkg/metapb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
)

// A raft entry of a region is a marshalled raft_cmdpb.RaftCmdRequest. Writes are encoded here by
// hand, because protobuf lets repeated fields be concatenated: each client's goroutine encodes its
// own requests, the raft worker glues neighbouring payloads behind one header, and the apply worker
// walks them without allocating. The bytes are exactly what generated code would write and read.

const (
	tagHeader   = 1<<3 | 2  // RaftCmdRequest.header
	tagRequests = 2<<3 | 2  // RaftCmdRequest.requests
	tagAdmin    = 3<<3 | 2  // RaftCmdRequest.admin_request
	tagWriteID  = 14<<3 | 2 // RaftCmdRequest.write_ids
	tagChecksum = 15<<3 | 2 // RaftCmdRequest.checksum

	tagCmdType = 1 << 3   // Request.cmd_type
	tagPut     = 4<<3 | 2 // Request.put
	tagDelete  = 5<<3 | 2 // Request.delete

	tagCF    = 1<<3 | 2
	tagKey   = 2<<3 | 2
	tagValue = 3<<3 | 2
	tagLife  = 4<<3 | 2
)

// lifeSize is the length of PutRequest.life.
const lifeSize = 16

// Life says how long a value lives: TTL from Now on, in milliseconds; Now is since 1970. A TTL of 0
// is for ever.
type Life struct{ Now, TTL uint64 }

func uvarintLen(x uint64) int {
	n := 1
	for x >= 0x80 {
		x >>= 7
		n++
	}
	return n
}

func fieldLen(n int) int {
	if n == 0 {
		return 0
	}
	return 1 + uvarintLen(uint64(n)) + n
}

func appendField(buf []byte, tag byte, data []byte) []byte {
	if len(data) == 0 {
		return buf
	}
	buf = append(buf, tag)
	buf = binary.AppendUvarint(buf, uint64(len(data)))
	return append(buf, data...)
}

func appendFieldString(buf []byte, tag byte, data string) []byte {
	if data == "" {
		return buf
	}
	buf = append(buf, tag)
	buf = binary.AppendUvarint(buf, uint64(len(data)))
	return append(buf, data...)
}

// AppendPut appends a put to a payload. The value may be empty.
func AppendPut(buf []byte, cf string, key, value []byte) []byte {
	body := fieldLen(len(cf)) + fieldLen(len(key)) + fieldLen(len(value))
	buf = appendRequest(buf, raft_cmdpb.CmdType_Put, tagPut, body)
	buf = appendFieldString(buf, tagCF, cf)
	buf = appendField(buf, tagKey, key)
	return appendField(buf, tagValue, value)
}

// AppendPutWithLife appends a put of a value that expires to a payload.
func AppendPutWithLife(buf []byte, cf string, key, value []byte, life Life) []byte {
	body := fieldLen(len(cf)) + fieldLen(len(key)) + fieldLen(len(value)) + fieldLen(lifeSize)
	buf = appendRequest(buf, raft_cmdpb.CmdType_Put, tagPut, body)
	buf = appendFieldString(buf, tagCF, cf)
	buf = appendField(buf, tagKey, key)
	buf = appendField(buf, tagValue, value)
	buf = append(buf, tagLife, lifeSize)
	buf = binary.LittleEndian.AppendUint64(buf, life.Now)
	return binary.LittleEndian.AppendUint64(buf, life.TTL)
}

// AppendDelete appends a delete to a payload.
func AppendDelete(buf []byte, cf string, key []byte) []byte {
	body := fieldLen(len(cf)) + fieldLen(len(key))
	buf = appendRequest(buf, raft_cmdpb.CmdType_Delete, tagDelete, body)
	buf = appendFieldString(buf, tagCF, cf)
	return appendField(buf, tagKey, key)
}

func appendRequest(buf []byte, cmd raft_cmdpb.CmdType, tag byte, body int) []byte {
	buf = append(buf, tagRequests)
	buf = binary.AppendUvarint(buf, uint64(2+1+uvarintLen(uint64(body))+body))
	buf = append(buf, tagCmdType, byte(cmd), tag)
	return binary.AppendUvarint(buf, uint64(body))
}

// WriteIDMax is the most bytes that AppendWriteID takes.
const WriteIDMax = 2 + 8 + binary.MaxVarintLen64

// AppendWriteID appends the identity of the write whose requests follow; nothing if it has none.
func AppendWriteID(buf []byte, id WriteID) []byte {
	if id == (WriteID{}) {
		return buf
	}
	buf = append(buf, tagWriteID, byte(8+uvarintLen(id.Number)))
	buf = binary.LittleEndian.AppendUint64(buf, id.Client)
	return binary.AppendUvarint(buf, id.Number)
}

func decodeWriteID(data []byte) (WriteID, error) {
	if len(data) < 9 {
		return WriteID{}, fmt.Errorf("%w: write id of %d bytes", errPayload, len(data))
	}
	number, n := binary.Uvarint(data[8:])
	if n != len(data)-8 {
		return WriteID{}, fmt.Errorf("%w: write id", errPayload)
	}
	return WriteID{Client: binary.LittleEndian.Uint64(data), Number: number}, nil
}

// AppendHeader appends the header of an entry: the region and the epoch it was planned for.
func AppendHeader(buf []byte, regionID uint64, epoch *metapb.RegionEpoch) []byte {
	h := raft_cmdpb.RaftRequestHeader{RegionId: regionID, RegionEpoch: epoch}
	n := h.Size()
	buf = append(buf, tagHeader)
	buf = binary.AppendUvarint(buf, uint64(n))
	at := len(buf)
	for cap(buf) < at+n {
		buf = append(buf[:cap(buf)], 0)
	}
	buf = buf[:at+n]
	if _, err := h.MarshalToSizedBuffer(buf[at:]); err != nil {
		panic(fmt.Sprintf("message: marshal header: %v", err))
	}
	return buf
}

// Op is one change of a write. The slices alias the entry.
type Op struct {
	Delete     bool
	CF         []byte
	Key, Value []byte
	Life       Life
}

// Entry is a decoded raft entry. Its slices alias the entry's data.
type Entry struct {
	Header raft_cmdpb.RaftRequestHeader
	// Admin is the marshalled admin request, nil for writes.
	Admin []byte
	// Conditional is the entry's only request if that is decided when it is applied, else nil.
	Conditional *raft_cmdpb.Request
	data        []byte
}

var errPayload = errors.New("message: malformed command")

// DecodeEntry parses the frame of an entry and checks its checksum, if it has one, and every
// request of it, so that VisitOps cannot fail. Any bytes are safe to pass. ErrCorrupt, or what is
// wrong with the frame.
func DecodeEntry(data []byte) (Entry, error) {
	e := Entry{data: data}
	requests := 0
	for len(data) > 0 {
		tag, field, rest, err := nextField(data)
		if err != nil {
			return Entry{}, err
		}
		switch tag {
		case tagHeader:
			if err := e.Header.Unmarshal(field); err != nil {
				return Entry{}, fmt.Errorf("%w: header: %w", errPayload, err)
			}
		case tagAdmin:
			e.Admin = field
		case tagRequests:
			requests++
			if isConditional(field) {
				e.Conditional, err = decodeConditional(field)
			} else {
				_, err = decodeOp(field)
			}
			if err != nil {
				return Entry{}, err
			}
		case tagWriteID:
			if _, err := decodeWriteID(field); err != nil {
				return Entry{}, err
			}
		case tagChecksum:
			if err := checkSum(e.data, len(e.data)-len(data), field); err != nil {
				return Entry{}, err
			}
		}
		data = rest
	}
	if e.Conditional != nil && (requests != 1 || e.Admin != nil) {
		return Entry{}, fmt.Errorf("%w: a conditional request beside others", errPayload)
	}
	return e, nil
}

// IsSwap tells whether the entry is a compare-and-swap, which is decided when it is applied.
func (e *Entry) IsSwap() bool { return e.Conditional != nil && e.Conditional.CompareAndSwap != nil }

// VisitIDs calls visit for the identity of each write that has one, in order.
func (e *Entry) VisitIDs(visit func(WriteID)) {
	for data := e.data; len(data) > 0; {
		tag, field, rest, err := nextField(data)
		if err != nil {
			return // DecodeEntry has checked
		}
		if tag == tagWriteID {
			if id, err := decodeWriteID(field); err == nil {
				visit(id)
			}
		}
		data = rest
	}
}

// VisitOps calls visit for each put and delete in order, until it returns false.
func (e *Entry) VisitOps(visit func(Op) bool) {
	data := e.data
	for len(data) > 0 {
		tag, field, rest, err := nextField(data)
		if err != nil {
			return // DecodeEntry has checked
		}
		if tag == tagRequests {
			op, err := decodeOp(field)
			if err != nil || !visit(op) {
				return
			}
		}
		data = rest
	}
}

func decodeOp(data []byte) (Op, error) {
	var op Op
	found := false
	for len(data) > 0 {
		if data[0] == tagCmdType {
			_, n := binary.Uvarint(data[1:])
			if n <= 0 {
				return Op{}, errPayload
			}
			data = data[1+n:]
			continue
		}
		tag, field, rest, err := nextField(data)
		if err != nil {
			return Op{}, err
		}
		if tag != tagPut && tag != tagDelete {
			return Op{}, fmt.Errorf("%w: unknown request field %d", errPayload, tag>>3)
		}
		found = true
		op.Delete = tag == tagDelete
		for len(field) > 0 {
			t, f, r, err := nextField(field)
			if err != nil {
				return Op{}, err
			}
			switch t {
			case tagCF:
				op.CF = f
			case tagKey:
				op.Key = f
			case tagValue:
				op.Value = f
			case tagLife:
				if len(f) != lifeSize {
					return Op{}, fmt.Errorf("%w: life of %d bytes", errPayload, len(f))
				}
				op.Life = Life{
					Now: binary.LittleEndian.Uint64(f), TTL: binary.LittleEndian.Uint64(f[8:]),
				}
			}
			field = r
		}
		data = rest
	}
	if !found {
		return Op{}, fmt.Errorf("%w: request without put or delete", errPayload)
	}
	return op, nil
}

// nextField splits off one length-delimited field.
func nextField(data []byte) (tag byte, field, rest []byte, err error) {
	tag = data[0]
	if tag&7 != 2 || tag&0x80 != 0 {
		return 0, nil, nil, fmt.Errorf("%w: tag %#x", errPayload, tag)
	}
	n, w := binary.Uvarint(data[1:])
	if w <= 0 || n > uint64(len(data)-1-w) {
		return 0, nil, nil, fmt.Errorf("%w: length", errPayload)
	}
	start := 1 + w
	end := start + int(n)
	return tag, data[start:end:end], data[end:], nil
}
