package strictjson_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/pkg/strictjson"
)

func TestObject(t *testing.T) {
	deep := func(n int) string { return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) }
	for _, good := range []string{
		`{}`, ` {"a": 1, "b": {"a": [1, {"a": null}]}} ` + "\n", `{"a": 1e400, "é": "�"}`,
		`{"a":{"x":1},"b":{"x":1}}`, deep(strictjson.MaxDepth),
	} {
		require.NoError(t, strictjson.Object([]byte(good)), good)
	}
	for bad, why := range map[string]string{
		"":                                 "end of JSON",
		"null":                             "not an object",
		"[]":                               "not an object",
		"1":                                "not an object",
		`{"a":1}{"a":2}`:                   "after top-level value",
		`{"a":1} x`:                        "after top-level value",
		`{"a":1,"a":2}`:                    `the key "a" stands twice`,
		`{"to":1,"TO":2}`:                  `the key "TO" stands twice`,
		"{\"keys\":1,\"\u212aeys\":2}":     "stands twice",
		"{\"stores\":1,\"\u017ftores\":1}": "stands twice",
		`{"a":1,"\u0061":2}`:               "stands twice",
		`{"x":[{"a":1,"a":2}]}`:            "stands twice",
		"{\"a\":\"\xff\"}":                 "not UTF-8",
		`{"a":01}`:                         "invalid character",
		`{"a":1,}`:                         "invalid character",
		deep(strictjson.MaxDepth + 1):      "nested more than 32 deep",
		strings.Repeat(`{"a":[`, 200000):   "exceeded max depth",
	} {
		require.ErrorContains(t, strictjson.Object([]byte(bad)), why, "%.60s", bad)
	}
}

// FuzzObject: what is taken is one object in UTF-8, and decoding it loses no key: what comes back
// has as many.
func FuzzObject(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"a":1,"b":[{"a":2}]}`, `{"a":1,"A":2}`, `{"":{"":0}}`, "{\"\u212a\":1,\"k\":2}",
		`{"\ud800":1}`, `{"a":1e999}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if strictjson.Object(data) != nil {
			return
		}
		require.True(t, utf8.Valid(data))
		var m map[string]json.RawMessage
		require.NoError(t, json.Unmarshal(data, &m))
		require.NotNil(t, m)
		names := make([]string, 0, len(m))
		for k := range m {
			for _, other := range names {
				require.False(t, strings.EqualFold(k, other), "%q and %q", k, other)
			}
			names = append(names, k)
		}
		var all any
		require.NoError(t, json.Unmarshal(data, &m))
		dec := json.NewDecoder(bytes.NewReader(data))
		dec.UseNumber()
		require.NoError(t, dec.Decode(&all))
		require.Equal(t, colons(data), keys(all), "a key was lost")
	})
}

// keys counts those of all objects in a value.
func keys(v any) (n int) {
	switch v := v.(type) {
	case map[string]any:
		for _, inner := range v {
			n += 1 + keys(inner)
		}
	case []any:
		for _, inner := range v {
			n += keys(inner)
		}
	}
	return n
}

// colons counts those outside of strings: one follows each key.
func colons(data []byte) (n int) {
	inString := false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case c == '"':
			inString = !inString
		case c == '\\' && inString:
			i++
		case c == ':' && !inString:
			n++
		}
	}
	return n
}
