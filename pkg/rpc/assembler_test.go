package rpc

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestMemoryOfAMessageThatWaits: memory for a message follows what has come of it while there is no
// room for all of it, and is of its size after that.
func TestMemoryOfAMessageThatWaits(t *testing.T) {
	const size = 128 << 20
	frame := make([]byte, 16<<10)
	binary.BigEndian.PutUint32(frame[1:], size)
	a, k := Assembler{}, new(Checksum)
	for came := len(frame); came <= 1<<20; came += len(frame) {
		msg, _, _, err := a.Add(frame, 256<<20, true, k)
		require.NoError(t, err)
		require.Nil(t, msg)
		require.Len(t, a.Msg, came)
		require.LessOrEqual(t, cap(a.Msg), max(2*came, 64<<10))
	}
	for a.Msg = a.Msg[:cap(a.Msg)]; cap(a.Msg) < size; {
		_, _, _, err := a.Add(frame, 256<<20, false, k)
		require.NoError(t, err)
	}
	require.Equal(t, size+PrefixSize, cap(a.Msg))
}
