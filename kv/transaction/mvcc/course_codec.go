package mvcc

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// CodecCourse is the format of the course, for storages in memory: the fixed fields only, all
// values in the default family, locks under the bare key.
var CodecCourse Codec = courseCodec{}

type courseCodec struct{}

func (courseCodec) LockKey(key []byte) []byte { return bytes.Clone(key) }

func (courseCodec) UserKey(lockKey []byte) ([]byte, error) { return bytes.Clone(lockKey), nil }

func (courseCodec) InlineLimit() int { return -1 }

func (courseCodec) EncodeLock(l *Lock) []byte {
	b := append(make([]byte, 0, len(l.Primary)+17), l.Primary...)
	b = append(b, byte(l.Kind))
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, l.Ts), l.Ttl)
}

func (courseCodec) DecodeLock(data []byte) (Lock, error) {
	if len(data) <= 16 {
		return Lock{}, fmt.Errorf("%w: a lock of %d bytes", ErrCorrupt, len(data))
	}
	n := len(data) - 17
	return Lock{
		Primary: bytes.Clone(data[:n]), Kind: WriteKind(data[n]),
		Ts: binary.BigEndian.Uint64(data[n+1:]), Ttl: binary.BigEndian.Uint64(data[n+9:]),
	}, nil
}

func (courseCodec) EncodeWrite(w *Write) []byte {
	return binary.BigEndian.AppendUint64([]byte{byte(w.Kind)}, w.StartTS)
}

func (courseCodec) DecodeWrite(data []byte) (Write, error) {
	if len(data) != 9 {
		return Write{}, fmt.Errorf("%w: a write record of %d bytes", ErrCorrupt, len(data))
	}
	return Write{Kind: WriteKind(data[0]), StartTS: binary.BigEndian.Uint64(data[1:])}, nil
}
