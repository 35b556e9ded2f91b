package rpc

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
)

// TestMessageOfAnotherStreamIsNoticed: the sum covers where a message belongs.
func TestMessageOfAnotherStreamIsNoticed(t *testing.T) {
	a := Checksum{Sends: true, Checks: true, Seed: ChecksumSeed(MethodSum(rpctest.GetPath), 1)}
	msg := append([]byte("\x00\x00\x00\x00\x0dmessage"), make([]byte, checksumSize)...)
	a.Seal(ToServer, msg)
	body := msg[PrefixSize:]
	open := func(k Checksum, d Direction) error { _, err := k.Open(d, body); return err }
	fresh := Checksum{Checks: true, Seed: ChecksumSeed(MethodSum(rpctest.GetPath), 1)}
	require.NoError(t, open(fresh, ToServer))
	require.ErrorIs(t, open(fresh, ToClient), ErrCorrupt)
	require.ErrorIs(t, open(Checksum{Checks: true, Seed: fresh.Seed, got: 1}, ToServer), ErrCorrupt)
	require.ErrorIs(t,
		open(Checksum{Checks: true, Seed: ChecksumSeed(MethodSum(rpctest.GetPath), 3)}, ToServer),
		ErrCorrupt)
	require.ErrorIs(t,
		open(Checksum{Checks: true, Seed: ChecksumSeed(MethodSum(rpctest.StreamPath), 1)},
			ToServer), ErrCorrupt)
	_, err := fresh.Open(ToServer, []byte("short"))
	require.ErrorIs(t, err, ErrCorrupt)
}

// TestSumIsThatOfTheBytesInOrder compares with the library's sum over all that is covered in one
// piece.
func TestSumIsThatOfTheBytesInOrder(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		stream, number, d := rnd.Uint32(), rnd.Uint32(), Direction(rnd.IntN(2))
		body := make([]byte, rnd.IntN(300))
		for i := range body {
			body[i] = byte(rnd.Uint32())
		}
		covered := binary.LittleEndian.AppendUint32([]byte(rpctest.GetPath), stream)
		covered = binary.LittleEndian.AppendUint32(append(covered, byte(d)), number)
		k := Checksum{Seed: ChecksumSeed(MethodSum(rpctest.GetPath), stream)}
		require.Equal(t, crc32.Checksum(append(covered, body...), castagnoli),
			k.sum(d, number, body))
	}
}

// TestFlippedBitsOfPrefixes: each one and two of the forty bits of a prefix are found, and a flag
// of both kinds passes.
func TestFlippedBitsOfPrefixes(t *testing.T) {
	require.Equal(t, byte(0x4a), func() (c byte) { // the check value of MMC's first command
		for _, b := range []byte{0x40, 0, 0, 0, 0} {
			c = crc7Table[c^b]
		}
		return c >> 1
	}())
	k := Checksum{Sends: true, Checks: true, Prefixes: true}
	for _, n := range []int{0, 1, 100, 16 << 10, 64 << 20} {
		for flag := range byte(2) {
			sealed := binary.BigEndian.AppendUint32([]byte{flag}, uint32(n))
			sealed[0] |= crc7(sealed) << 1
			got, err := k.messageSize(sealed, math.MaxInt32)
			require.NoError(t, err)
			require.Equal(t, PrefixSize+n, got)
			require.Equal(t, flag, Compressed(sealed))
			for i := range 8 * PrefixSize {
				for j := range i + 1 { // j == i: one bit
					bad := bytes.Clone(sealed)
					bad[i/8] ^= 1 << (i % 8)
					if j != i {
						bad[j/8] ^= 1 << (j % 8)
					}
					_, err := k.messageSize(bad, math.MaxInt32)
					require.ErrorIs(t, err, ErrCorrupt)
				}
			}
		}
	}
	// The header that says that there are sums was damaged.
	for _, unsaid := range []Checksum{{}, {Sends: true, Prefixes: true}} {
		_, err := unsaid.messageSize([]byte{crc7([]byte{0, 0, 0, 0, 9}) << 1, 0, 0, 0, 9}, 100)
		require.ErrorIs(t, err, ErrCorrupt)
	}
}
