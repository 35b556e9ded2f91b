package rpc

import (
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/pkg/rpc/rpctest"
)

// TestMessageOfAnotherStreamIsNoticed: the sum covers where a message belongs.
func TestMessageOfAnotherStreamIsNoticed(t *testing.T) {
	a := Checksum{Sends: true, Checks: true, Seed: ChecksumSeed(MethodSum(rpctest.GetPath), 1)}
	body := append([]byte("message"), make([]byte, checksumSize)...)
	a.Seal(ToServer, body)
	open := func(k Checksum, d Direction) error { _, err := k.Open(d, body); return err }
	fresh := Checksum{Checks: true, Seed: ChecksumSeed(MethodSum(rpctest.GetPath), 1)}
	require.NoError(t, open(fresh, ToServer))
	require.ErrorIs(t, open(fresh, ToClient), ErrCorrupt)
	require.ErrorIs(t, open(Checksum{Checks: true, Seed: fresh.Seed, got: 1}, ToServer), ErrCorrupt)
	require.ErrorIs(t, open(Checksum{Checks: true, Seed: ChecksumSeed(MethodSum(rpctest.GetPath), 3)}, ToServer), ErrCorrupt)
	require.ErrorIs(t, open(Checksum{Checks: true, Seed: ChecksumSeed(MethodSum(rpctest.StreamPath), 1)}, ToServer), ErrCorrupt)
	_, err := fresh.Open(ToServer, []byte("short"))
	require.ErrorIs(t, err, ErrCorrupt)
}

// TestSumIsThatOfTheBytesInOrder compares with the library's sum over all that is covered in one piece.
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
		require.Equal(t, crc32.Checksum(append(covered, body...), castagnoli), k.sum(d, number, body))
	}
}
