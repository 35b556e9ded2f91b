package server

import (
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// TestSizeOfCalls: one is allocated for each unary call. Memory comes in sizes, of which 288 is
// one.
func TestSizeOfCalls(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) != 8 {
		t.Skip("other sizes")
	}
	require.LessOrEqual(t, unsafe.Sizeof(Call{}), uintptr(288))
}
