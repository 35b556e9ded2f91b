package badgerengine

import (
	"regexp"
	"slices"
	"strconv"

	"go.uber.org/zap/zapcore"

	"github.com/tinykv/tinykv/pkg/redact"
)

// keyFields are the fields of the library's lines that show keys in ways of its own: the tables of
// a compaction, and the first key of a log that is read again.
var keyFields = []string{"def", "compact def", "first key"}

// withoutKeys returns the fields without those that show keys, as a new slice.
func withoutKeys(fields []zapcore.Field) []zapcore.Field {
	return slices.DeleteFunc(slices.Clone(fields), func(f zapcore.Field) bool {
		return slices.Contains(keyFields, f.Key)
	})
}

// overlap is how the library tells of tables that are out of order, with their keys.
var overlap = regexp.MustCompile(`("(?:[^"\\]|\\.)*") vs ("(?:[^"\\]|\\.)*")`)

// keyError is an error of the library with its keys written as redact writes them.
type keyError struct{ error }

func (e keyError) Error() string {
	return overlap.ReplaceAllStringFunc(e.error.Error(), func(found string) string {
		pair := overlap.FindStringSubmatch(found)
		return quoted(pair[1]) + " vs " + quoted(pair[2])
	})
}

func (e keyError) Unwrap() error { return e.error }

func quoted(text string) string {
	key, err := strconv.Unquote(text)
	if err != nil {
		return "a key"
	}
	return redact.Key(key).String()
}
