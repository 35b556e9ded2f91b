package rpc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/proto/codec"
)

// A bit that flips between two processes passes TCP's checksum once in 65,536 times, and always
// where a proxy or a network card computes that anew. So each message carries a checksum of its
// own, from the memory of the process that encodes it to that of the process that decodes it, if
// the client asks for it and the server knows it:
//
//   - The client sends the header "tinykv-checksum: crc32c" with the call; the server sends it with
//     the answer's headers.
//   - Behind each message stand six bytes that are a protocol-buffer field, fixed32 number 2047,
//     which decoders that do not know it skip.
//   - The sum covers the method, the stream, the direction and the message's number in it, besides
//     the message: one that arrives on another stream, twice or not at all is noticed as well.
//
// A message whose sum is wrong ends the connection. What was under way on it is sent again, or is
// of unknown outcome.
//
// The length before a message needs a sum of its own: with one that is damaged, whatever comes
// after it on the stream, perhaps for ever, would be taken for the rest of the message. gRPC has a
// byte there for one bit, whether the message is compressed; the other seven have a CRC-7 of that
// bit and the length. It finds each one and two flipped bits. A server that knows it says so by the
// setting SettingPrefixSums, before the first call; a client that does asks for it by the value
// "crc32c+prefix" of the header.
//
// Headers have no sum, and what is damaged in them stays in the connection's header table, for all
// calls after. So a message that has a sum ends a connection whose headers do not say so. An answer
// that does not say it, of a server that has said it before, ends it too: failures say it as well.
// And a connection on which an answer is of no gRPC server, or of one that does not know the
// method, takes no further calls.

const (
	// ChecksumHeader is the header by which checksums are agreed upon.
	ChecksumHeader = "tinykv-checksum"
	// ChecksumKind is its value.
	ChecksumKind = "crc32c"
	// ChecksumPrefixKind is the value by which a client asks for sums of prefixes as well, in both
	// directions.
	ChecksumPrefixKind = "crc32c+prefix"
	// SettingPrefixSums is an HTTP/2 setting of a number that is not assigned: 1 says that the
	// server knows ChecksumPrefixKind.
	SettingPrefixSums http2.SettingID = 0xf1c7
	// checksumSize is what stands behind a message.
	checksumSize = 6
	checksumTag0 = 0xfd
	checksumTag1 = 0x7f
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrCorrupt says that a message was changed on its way.
var ErrCorrupt = errors.New("rpc: a message was damaged on its way")

// OnCorrupt is called for a message that was damaged on its way, before its connection ends. It
// must not block.
type OnCorrupt func(remote net.Addr, method string)

// Direction tells requests from answers.
type Direction byte

const (
	// ToServer is the direction of requests.
	ToServer Direction = iota
	// ToClient is that of answers.
	ToClient
)

// Checksum is a call's part. Sums of sent messages are made under the connection's lock, received
// ones are checked by the reading goroutine: sent belongs to the lock, got to the goroutine, the
// rest does not change once it is set.
type Checksum struct {
	// Sends and Checks tell whether messages carry sums each way, Prefixes whether those that do
	// have sums of their prefixes. Seed is what the sums begin with, see ChecksumSeed.
	Sends, Checks, Prefixes bool
	Seed                    uint32
	sent, got               uint32
}

// MethodSum is the checksum of a method's path, with which the sums of its calls begin.
func MethodSum(path string) uint32 { return crc32.Checksum([]byte(path), castagnoli) }

// ChecksumSeed is what the sums of a call begin with.
func ChecksumSeed(methodSum uint32, stream uint32) uint32 { return addUint32(methodSum, stream) }

// addUint32 and addByte continue a sum with few bytes. crc32.Update would have to allocate them.
func addUint32(sum, v uint32) uint32 {
	for range 4 {
		sum = addByte(sum, byte(v))
		v >>= 8
	}
	return sum
}

func addByte(sum uint32, b byte) uint32 { return ^(castagnoli[byte(^sum)^b] ^ ^sum>>8) }

func (k *Checksum) sum(d Direction, number uint32, body []byte) uint32 {
	return crc32.Update(addUint32(addByte(k.Seed, byte(d)), number), castagnoli, body)
}

// Size is what a sum takes behind a message that is sent.
func (k *Checksum) Size() int {
	if k.Sends {
		return checksumSize
	}
	return 0
}

// Slack is what may stand behind a received message beyond the limit on its size.
func (k *Checksum) Slack() int {
	if k.Checks {
		return checksumSize
	}
	return 0
}

// Seal fills the last bytes of an encoded message, with its prefix, with the sum of the rest, and
// the prefix's.
func (k *Checksum) Seal(d Direction, msg []byte) {
	if !k.Sends {
		return
	}
	if k.Prefixes {
		msg[0] |= crc7(msg[:PrefixSize]) << 1
	}
	body := msg[PrefixSize:]
	n := len(body) - checksumSize
	body[n], body[n+1] = checksumTag0, checksumTag1
	binary.LittleEndian.PutUint32(body[n+2:], k.sum(d, k.sent, body[:n]))
	k.sent++
}

// Open checks a received message, without its prefix, and takes the sum off. ErrCorrupt.
func (k *Checksum) Open(d Direction, body []byte) ([]byte, error) {
	n := len(body) - checksumSize
	sealed := n >= 0 && body[n] == checksumTag0 && body[n+1] == checksumTag1 &&
		binary.LittleEndian.Uint32(body[n+2:]) == k.sum(d, k.got, body[:n])
	if sealed != k.Checks { // unchecked but sealed: the header that says so was damaged
		return nil, fmt.Errorf("message %d: %w", k.got, ErrCorrupt)
	}
	k.got++
	if !sealed {
		return body, nil
	}
	return body[:n:n], nil
}

// put fills buf with a message, its prefix and its sum.
func (k *Checksum) put(d Direction, buf []byte, m codec.Message) error {
	if err := putMessage(buf, len(buf)-k.Size(), m); err != nil {
		return err
	}
	k.Seal(d, buf)
	return nil
}

// crc7Table is for the polynomial x^7+x^3+1; remainders stand in the upper seven bits.
var crc7Table = func() (t [256]byte) {
	for i := range t {
		c := byte(i)
		for range 8 {
			if c&0x80 != 0 {
				c ^= 0x89
			}
			c <<= 1
		}
		t[i] = c
	}
	return t
}()

// crc7 is the CRC-7 of a prefix, of whose first byte the lowest bit counts.
func crc7(prefix []byte) byte {
	c := crc7Table[prefix[0]&1]
	for _, b := range prefix[1:PrefixSize] {
		c = crc7Table[c^b]
	}
	return c >> 1
}

// messageSize reads the prefix of a message that is received: its size with the prefix. ErrCorrupt.
func (k *Checksum) messageSize(prefix []byte, limit int) (int, error) {
	flag := prefix[0]
	sums := k.Prefixes && k.Checks
	switch sealed := flag>>1 == crc7(prefix); {
	case sums && !sealed, !sums && sealed && flag > 1: // in the second case, the header that says so was damaged
		return 0, fmt.Errorf("the length of message %d: %w", k.got, ErrCorrupt)
	case !sums && flag > 1:
		return 0, status.Errorf(codes.Internal, "unknown message flag %d", flag)
	}
	n := binary.BigEndian.Uint32(prefix[1:])
	if uint64(n) > uint64(limit) {
		return 0,
			status.Errorf(codes.ResourceExhausted, "received message larger than max (%d vs. %d)",
				n, limit)
	}
	return PrefixSize + int(n), nil
}

// Compressed is the flag of a received message, of which msg is the beginning and whose prefix is
// good.
func Compressed(msg []byte) byte {
	return msg[0] & 1
}
