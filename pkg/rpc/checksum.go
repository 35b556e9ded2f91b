package rpc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"

	"github.com/tinykv/tinykv/proto/codec"
)

// A bit that flips between two processes passes TCP's checksum once in 65,536 times, and always where a proxy or a
// network card computes that anew. So each message carries a checksum of its own, from the memory of the process that
// encodes it to that of the process that decodes it, if the client asks for it and the server knows it:
//
//   - The client sends the header "tinykv-checksum: crc32c" with the call; the server sends it with the answer's headers.
//   - Behind each message stand six bytes that are a protocol-buffer field, fixed32 number 2047, which decoders that do
//     not know it skip.
//   - The sum covers the method, the stream, the direction and the message's number in it, besides the message: one that
//     arrives on another stream, twice or not at all is noticed as well.
//
// A message whose sum is wrong ends the connection. What was under way on it is sent again, or is of unknown outcome.
//
// Headers have no sum, and what is damaged in them stays in the connection's header table, for all calls after. So a
// message that has a sum ends a connection whose headers do not say so. An answer that does not say it, of a server that
// has said it before, ends it too: failures say it as well. And a connection on which an answer is of no gRPC server, or
// of one that does not know the method, takes no further calls.

const (
	// ChecksumHeader is the header by which checksums are agreed upon.
	ChecksumHeader = "tinykv-checksum"
	// ChecksumKind is its value.
	ChecksumKind = "crc32c"
	// checksumSize is what stands behind a message.
	checksumSize = 6
	checksumTag0 = 0xfd
	checksumTag1 = 0x7f
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrCorrupt says that a message was changed on its way.
var ErrCorrupt = errors.New("rpc: a message was damaged on its way")

// OnCorrupt is told of a message that was damaged on its way, before its connection ends. It must not block.
type OnCorrupt func(remote net.Addr, method string)

// Direction tells requests from answers.
type Direction byte

const (
	// ToServer is the direction of requests.
	ToServer Direction = iota
	// ToClient is that of answers.
	ToClient
)

// Checksum is a call's part. Sums of sent messages are made under the connection's lock, received ones are checked by the
// reading goroutine: sent belongs to the lock, got to the goroutine, the rest does not change once it is set.
type Checksum struct {
	// Sends and Checks tell whether messages carry sums each way. Seed is what the sums begin with, see ChecksumSeed.
	Sends, Checks bool
	Seed          uint32
	sent, got     uint32
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

// Seal fills the last bytes of an encoded message, without its prefix, with the sum of the rest.
func (k *Checksum) Seal(d Direction, body []byte) {
	if !k.Sends {
		return
	}
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
	k.Seal(d, buf[PrefixSize:])
	return nil
}
