package log

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/tinykv/tinykv/pkg/redact"
)

// TestRedactKeys: keys in fields, in errors and in messages, in both formats; the rest of a line
// stays.
func TestRedactKeys(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		for _, redacted := range []bool{false, true} {
			cfg := DefaultConfig()
			cfg.Format, cfg.File.Filename = format, filepath.Join(t.TempDir(), "log")
			logger, _, end, err := New(cfg, redacted)
			require.NoError(t, err)
			key := redact.Key("secret")
			logger.With(Key("start-key", key)).Warn("split at "+key.String(), Key("end-key", nil),
				RegionID(7),
				zap.Error(errors.Join(errors.New("key "+key.String()+" is locked"),
					os.ErrNotExist)), zap.Any("keys", []any{key.String()}))
			end()
			line, err := os.ReadFile(cfg.File.Filename)
			require.NoError(t, err)
			text := string(line)
			require.Contains(t, text, `"end-key":`)
			require.Contains(t, text, `"region-id":`)
			require.Contains(t, text, "file does not exist")
			count := 4
			if redacted {
				count = 0
				require.Equal(t, 4, strings.Count(text, "h'"), text)
			}
			require.Equal(t, count, strings.Count(text, "x'736563726574'"), text)
		}
	}
}
