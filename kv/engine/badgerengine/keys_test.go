package badgerengine

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

func TestKeysInTheLibrarysErrors(t *testing.T) {
	cause := fmt.Errorf("Level 1: Inter: %q vs %q: level=1 j=2: %w", "a\"\x00", "secret",
		fs.ErrNotExist)
	err := keyError{cause}
	require.EqualError(t, err,
		"Level 1: Inter: x'612200' vs x'736563726574': level=1 j=2: file does not exist")
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.EqualError(t, keyError{errors.New(`Opening table: "000001.sst"`)},
		`Opening table: "000001.sst"`)
}

func TestKeysInTheLibrarysLines(t *testing.T) {
	fields := []zap.Field{
		zap.Int("level", 1), zap.String("def", "[left=61]"), zap.String("first key", "61(1)"),
		zap.Int("deleted", 2),
	}
	require.Equal(t, []zap.Field{zap.Int("level", 1), zap.Int("deleted", 2)}, withoutKeys(fields))
	require.Len(t, fields, 4)
	require.Equal(t, "def", fields[1].Key, "the library's own slice stays as it was")
}
