package mvcc

import (
	"encoding/binary"
	"fmt"

	"github.com/tinykv/tinykv/pkg/memcomparable"
	"github.com/tinykv/tinykv/pkg/redact"
)

// Codec turns locks and write records into bytes. Both codecs encode the keys of the default and
// the write family alike.
type Codec interface {
	// LockKey is the key's place in the lock family, and UserKey the way back.
	LockKey(key []byte) []byte
	UserKey(lockKey []byte) ([]byte, error)
	EncodeLock(l *Lock) []byte
	DecodeLock(data []byte) (Lock, error)
	EncodeWrite(w *Write) []byte
	DecodeWrite(data []byte) (Write, error)
	// InlineLimit is the length of the longest value that is stored in lock and write record; -1 if
	// none is.
	InlineLimit() int
}

// EncodeKey is a version's place in the default family (with its start timestamp) and in the write
// family (with its commit timestamp). Newer versions sort first.
func EncodeKey(key []byte, ts uint64) []byte {
	return binary.BigEndian.AppendUint64(memcomparable.Encode(key), ^ts)
}

// SplitKey is the reverse of EncodeKey.
func SplitKey(encoded []byte) (key []byte, ts uint64, err error) {
	key, rest, err := memcomparable.Decode(encoded)
	if err != nil || len(rest) != 8 {
		return nil, 0,
			fmt.Errorf("%w: %v is not a key with a timestamp", ErrCorrupt, redact.Key(encoded))
	}
	return key, ^binary.BigEndian.Uint64(rest), nil
}

// CodecTiKV is the format on disk.
var CodecTiKV Codec = tikvCodec{}

type tikvCodec struct{}

func (tikvCodec) LockKey(key []byte) []byte { return memcomparable.Encode(key) }

func (tikvCodec) UserKey(lockKey []byte) ([]byte, error) {
	key, rest, err := memcomparable.Decode(lockKey)
	if err != nil || len(rest) != 0 {
		return nil, fmt.Errorf("%w: %v is not the key of a lock", ErrCorrupt, redact.Key(lockKey))
	}
	return key, nil
}

func (tikvCodec) InlineLimit() int { return 255 }

// The kinds' bytes, and the flags before the optional fields; part of the on-disk format, do not
// change.
const (
	flagShortValue  = 'v'
	flagForUpdate   = 'f'
	flagTxnSize     = 't'
	flagMinCommit   = 'c'
	flagAsync       = 'a'
	flagRollbacks   = 'r'
	flagLastChange  = 'l'
	flagLockSource  = 's'
	flagConflict    = 'F'
	flagGeneration  = 'g'
	flagOverlapped  = 'R'
	flagFence       = 'F'
	flagWriteSource = 'S'
)

// kinds are the bytes of kinds, 0 where there is none.
type kinds [WriteKindPessimistic + 1]byte

var (
	lockKinds = kinds{
		WriteKindPut: 'P', WriteKindDelete: 'D', WriteKindLock: 'L', WriteKindPessimistic: 'S',
	}
	writeKinds = kinds{
		WriteKindPut: 'P', WriteKindDelete: 'D', WriteKindLock: 'L', WriteKindRollback: 'R',
	}
)

func (k *kinds) of(b byte) (WriteKind, error) {
	for kind, c := range k {
		if c == b && c != 0 {
			return WriteKind(kind), nil
		}
	}
	return 0, fmt.Errorf("%w: kind %q", ErrCorrupt, b)
}

func appendUint64(b []byte, flag byte, v uint64) []byte {
	return binary.BigEndian.AppendUint64(append(b, flag), v)
}

func appendBytes(b, v []byte) []byte { return append(binary.AppendVarint(b, int64(len(v))), v...) }

func appendShortValue(b, v []byte) []byte {
	if v == nil {
		return b
	}
	return append(append(b, flagShortValue, byte(len(v))), v...)
}

func (tikvCodec) EncodeLock(l *Lock) []byte {
	b := make([]byte, 0, len(l.Primary)+len(l.ShortValue)+64)
	b = appendBytes(append(b, lockKinds[l.Kind]), l.Primary)
	b = binary.AppendUvarint(binary.AppendUvarint(b, l.Ts), l.Ttl)
	b = appendShortValue(b, l.ShortValue)
	for _, f := range [...]struct {
		flag  byte
		value uint64
	}{{flagForUpdate, l.ForUpdateTS}, {flagTxnSize, l.TxnSize}, {flagMinCommit, l.MinCommitTS}} {
		if f.value != 0 {
			b = appendUint64(b, f.flag, f.value)
		}
	}
	if l.AsyncCommit {
		b = binary.AppendUvarint(append(b, flagAsync), uint64(len(l.Secondaries)))
		for _, s := range l.Secondaries {
			b = appendBytes(b, s)
		}
	}
	if len(l.RollbackTS) > 0 {
		b = binary.AppendUvarint(append(b, flagRollbacks), uint64(len(l.RollbackTS)))
		for _, ts := range l.RollbackTS {
			b = binary.BigEndian.AppendUint64(b, ts)
		}
	}
	b = appendLastChange(b, l.LastChange)
	if l.TxnSource != 0 {
		b = binary.AppendUvarint(append(b, flagLockSource), l.TxnSource)
	}
	if l.LockedWithConflict {
		b = append(b, flagConflict)
	}
	if l.Generation != 0 {
		b = appendUint64(b, flagGeneration, l.Generation)
	}
	return b
}

func appendLastChange(b []byte, c LastChange) []byte {
	if c == (LastChange{}) {
		return b
	}
	return binary.AppendUvarint(appendUint64(b, flagLastChange, c.TS), c.Versions)
}

// decoder reads the fields of a record; the first fault makes all that follow fail.
type decoder struct {
	data []byte
	err  error
}

func (d *decoder) fail(what string) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: record without %s", ErrCorrupt, what)
	}
	d.data = nil
}

func (d *decoder) more() bool { return len(d.data) > 0 && d.err == nil }

func (d *decoder) byte(what string) byte {
	if b := d.take(1, what); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) take(n uint64, what string) []byte {
	if d.err != nil || n > uint64(len(d.data)) {
		d.fail(what)
		return nil
	}
	b := d.data[:n:n]
	d.data = d.data[n:]
	return b
}

func (d *decoder) uvarint(what string) uint64 {
	v, n := binary.Uvarint(d.data)
	if n <= 0 {
		d.fail(what)
		return 0
	}
	d.data = d.data[n:]
	return v
}

func (d *decoder) uint64(what string) uint64 {
	if b := d.take(8, what); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// bytes copies a string with its length before it.
func (d *decoder) bytes(what string) []byte {
	v, n := binary.Varint(d.data)
	if n <= 0 || v < 0 {
		d.fail(what)
		return nil
	}
	d.data = d.data[n:]
	return append([]byte{}, d.take(uint64(v), what)...)
}

func (d *decoder) shortValue() []byte {
	n := d.byte("length of its value")
	return append([]byte{}, d.take(uint64(n), "its value")...)
}

func (d *decoder) lastChange() LastChange {
	ts := d.uint64("last change")
	return LastChange{TS: ts, Versions: d.uvarint("last change")}
}

// list reads a count that cannot be larger than what is left.
func (d *decoder) list(what string) uint64 {
	n := d.uvarint(what)
	if n > uint64(len(d.data)) {
		d.fail(what)
		return 0
	}
	return n
}

func (tikvCodec) DecodeLock(data []byte) (l Lock, err error) {
	d := &decoder{data: data}
	if l.Kind, err = lockKinds.of(d.byte("kind")); err != nil {
		return Lock{}, err
	}
	l.Primary, l.Ts = d.bytes("primary"), d.uvarint("start timestamp")
	if d.more() {
		l.Ttl = d.uvarint("time to live")
	}
	for d.more() {
		switch flag := d.byte("flag"); flag {
		case flagShortValue:
			l.ShortValue = d.shortValue()
		case flagForUpdate:
			l.ForUpdateTS = d.uint64("for_update_ts")
		case flagTxnSize:
			l.TxnSize = d.uint64("txn_size")
		case flagMinCommit:
			l.MinCommitTS = d.uint64("min_commit_ts")
		case flagAsync:
			l.AsyncCommit = true
			for range d.list("secondaries") {
				l.Secondaries = append(l.Secondaries, d.bytes("secondary"))
			}
		case flagRollbacks:
			for range d.list("rollbacks") {
				l.RollbackTS = append(l.RollbackTS, d.uint64("rollback"))
			}
		case flagLastChange:
			l.LastChange = d.lastChange()
		case flagLockSource:
			l.TxnSource = d.uvarint("source")
		case flagConflict:
			l.LockedWithConflict = true
		case flagGeneration:
			l.Generation = d.uint64("generation")
		default:
			// What a lock says may decide about its transaction, so nothing of it may be skipped.
			return Lock{}, fmt.Errorf("%w: lock with the unknown field %q", ErrCorrupt, flag)
		}
	}
	if d.err != nil {
		return Lock{}, d.err
	}
	return l, nil
}

func (tikvCodec) EncodeWrite(w *Write) []byte {
	b := make([]byte, 0, len(w.ShortValue)+32)
	b = binary.AppendUvarint(append(b, writeKinds[w.Kind]), w.StartTS)
	b = appendShortValue(b, w.ShortValue)
	if w.OverlappedRollback {
		b = append(b, flagOverlapped)
	}
	if w.Fence != nil {
		b = appendUint64(b, flagFence, *w.Fence)
	}
	b = appendLastChange(b, w.LastChange)
	if w.TxnSource != 0 {
		b = binary.AppendUvarint(append(b, flagWriteSource), w.TxnSource)
	}
	return b
}

func (tikvCodec) DecodeWrite(data []byte) (w Write, err error) {
	d := &decoder{data: data}
	if w.Kind, err = writeKinds.of(d.byte("kind")); err != nil {
		return Write{}, err
	}
	w.StartTS = d.uvarint("start timestamp")
	for d.more() {
		switch d.byte("flag") {
		case flagShortValue:
			w.ShortValue = d.shortValue()
		case flagOverlapped:
			w.OverlappedRollback = true
		case flagFence:
			fence := d.uint64("fence")
			w.Fence = &fence
		case flagLastChange:
			w.LastChange = d.lastChange()
		case flagWriteSource:
			w.TxnSource = d.uvarint("source")
		default:
			d.data = nil // a newer version's field, which TiKV skips as well
		}
	}
	if d.err != nil {
		return Write{}, d.err
	}
	return w, nil
}
