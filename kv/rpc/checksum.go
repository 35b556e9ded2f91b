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
	checksumHeader = "tinykv-checksum"
	checksumKind   = "crc32c"
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

// direction tells requests from answers.
type direction byte

const (
	toServer direction = iota
	toClient
)

// checksum is a call's part. Sums of sent messages are made under the connection's lock, received ones are checked by the
// reading goroutine: sent belongs to the lock, got to the goroutine, the rest does not change once it is set.
type checksum struct {
	sends, checks bool
	seed          uint32
	sent, got     uint32
}

// methodSum is the checksum of a method's path, with which the sums of its calls begin.
func methodSum(path string) uint32 { return crc32.Checksum([]byte(path), castagnoli) }

// checksumSeed is what the sums of a call begin with.
func checksumSeed(methodSum uint32, stream uint32) uint32 { return addUint32(methodSum, stream) }

// addUint32 and addByte continue a sum with few bytes. crc32.Update would have to allocate them.
func addUint32(sum, v uint32) uint32 {
	for range 4 {
		sum = addByte(sum, byte(v))
		v >>= 8
	}
	return sum
}

func addByte(sum uint32, b byte) uint32 { return ^(castagnoli[byte(^sum)^b] ^ ^sum>>8) }

func (k *checksum) sum(d direction, number uint32, body []byte) uint32 {
	return crc32.Update(addUint32(addByte(k.seed, byte(d)), number), castagnoli, body)
}

// size is what a sum takes behind a message that is sent.
func (k *checksum) size() int {
	if k.sends {
		return checksumSize
	}
	return 0
}

// slack is what may stand behind a received message beyond the limit on its size.
func (k *checksum) slack() int {
	if k.checks {
		return checksumSize
	}
	return 0
}

// seal fills the last bytes of an encoded message, without its prefix, with the sum of the rest.
func (k *checksum) seal(d direction, body []byte) {
	if !k.sends {
		return
	}
	n := len(body) - checksumSize
	body[n], body[n+1] = checksumTag0, checksumTag1
	binary.LittleEndian.PutUint32(body[n+2:], k.sum(d, k.sent, body[:n]))
	k.sent++
}

// open checks a received message, without its prefix, and takes the sum off. ErrCorrupt.
func (k *checksum) open(d direction, body []byte) ([]byte, error) {
	n := len(body) - checksumSize
	sealed := n >= 0 && body[n] == checksumTag0 && body[n+1] == checksumTag1 &&
		binary.LittleEndian.Uint32(body[n+2:]) == k.sum(d, k.got, body[:n])
	if sealed != k.checks { // unchecked but sealed: the header that says so was damaged
		return nil, fmt.Errorf("message %d: %w", k.got, ErrCorrupt)
	}
	k.got++
	if !sealed {
		return body, nil
	}
	return body[:n:n], nil
}

// put fills buf with a message, its prefix and its sum.
func (k *checksum) put(d direction, buf []byte, m codec.Message) error {
	if err := putMessage(buf, len(buf)-k.size(), m); err != nil {
		return err
	}
	k.seal(d, buf[prefixSize:])
	return nil
}
