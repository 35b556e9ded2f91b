package raftlog

import (
	"errors"
	"io/fs"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/tinykv/tinykv/kv/faultfs"
)

// TestSpareIsWrittenInPieces: with a rest between any two of them, and a start removes what a crash
// has left of one.
func TestSpareIsWrittenInPieces(t *testing.T) {
	files := faultfs.NewMemFS(nil)
	opts := Options{SegmentSize: 3 * sparePiece, FS: files, Manual: true, Logger: zap.NewNop()}
	l, err := Open("raft", opts)
	require.NoError(t, err)
	size := func(name string) int64 {
		f, err := files.Open(name)
		require.NoError(t, err)
		defer f.Close()
		n, err := f.Size()
		require.NoError(t, err)
		return n
	}
	rests := 0
	s, err := l.makeSpare(2*sparePiece+4096, func(time.Duration) { rests++ })
	require.NoError(t, err)
	require.Equal(t, 2, rests)
	require.EqualValues(t, 2*sparePiece+4096, size(s.name))

	left := s.name // as short as one that was under way
	require.NoError(t, l.Close())
	l, err = Open("raft", opts)
	require.NoError(t, err)
	defer l.Close()
	_, err = files.Open(left)
	require.True(t, errors.Is(err, fs.ErrNotExist), "%v", err)
	require.Empty(t, l.spares.mu.files)
}
