package rpc

import (
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestMessageOfAnotherStreamIsNoticed: the sum covers where a message belongs.
func TestMessageOfAnotherStreamIsNoticed(t *testing.T) {
	a := checksum{sends: true, checks: true, seed: checksumSeed(methodSum(getPath), 1)}
	body := append([]byte("message"), make([]byte, checksumSize)...)
	a.seal(toServer, body)
	open := func(k checksum, d direction) error { _, err := k.open(d, body); return err }
	fresh := checksum{checks: true, seed: checksumSeed(methodSum(getPath), 1)}
	require.NoError(t, open(fresh, toServer))
	require.ErrorIs(t, open(fresh, toClient), ErrCorrupt)
	require.ErrorIs(t, open(checksum{checks: true, seed: fresh.seed, got: 1}, toServer), ErrCorrupt)
	require.ErrorIs(t, open(checksum{checks: true, seed: checksumSeed(methodSum(getPath), 3)}, toServer), ErrCorrupt)
	require.ErrorIs(t, open(checksum{checks: true, seed: checksumSeed(methodSum(streamPath), 1)}, toServer), ErrCorrupt)
	_, err := fresh.open(toServer, []byte("short"))
	require.ErrorIs(t, err, ErrCorrupt)
}

// TestSumIsThatOfTheBytesInOrder compares with the library's sum over all that is covered in one piece.
func TestSumIsThatOfTheBytesInOrder(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		stream, number, d := rnd.Uint32(), rnd.Uint32(), direction(rnd.IntN(2))
		body := make([]byte, rnd.IntN(300))
		for i := range body {
			body[i] = byte(rnd.Uint32())
		}
		covered := binary.LittleEndian.AppendUint32([]byte(getPath), stream)
		covered = binary.LittleEndian.AppendUint32(append(covered, byte(d)), number)
		k := checksum{seed: checksumSeed(methodSum(getPath), stream)}
		require.Equal(t, crc32.Checksum(append(covered, body...), castagnoli), k.sum(d, number, body))
	}
}
