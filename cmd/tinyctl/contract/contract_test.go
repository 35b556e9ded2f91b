package contract

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestForm(t *testing.T) {
	for _, c := range []struct {
		name, doc string
		keys      Keys
		want      string
	}{
		{"ids", `{"id":18446744073709551615,"store_id":1,"start_ts":3}`, Done,
			`{"id":"18446744073709551615","store_id":"1","start_ts":"3"}`},
		{"ids that are strings", `{"id":"7"}`, Done, `{"id":"7"}`},
		{"counts and lists", `{"regions":3,"waiting":{"x":{"regions":[4,5]}},"stores":[]}`, Done,
			`{"regions":3,"waiting":{"x":{"regions":["4","5"]}},"stores":[]}`},
		{"objects in lists", `{"regions":[{"id":1,"keys":9}]}`, Hex,
			`{"regions":[{"id":"1","keys":9}]}`},
		{"text keys", `{"start_key":"61","end_key":""}`, Hex,
			`{"start_key":"a","start_key_hex":"61","end_key":"","end_key_hex":""}`},
		{"keys that are no text", `{"start":"ff"}`, Hex, `{"start_hex":"ff"}`},
		{"base64", `{"start":null,"end":"/w=="}`, Base64,
			`{"start":"","start_hex":"","end_hex":"ff"}`},
		{"keys that are done", `{"start":"a"}`, Done, `{"start":"a"}`},
		{"sizes", `{"size_mib":3,"load_mib":0.5,"mib_per_second":1}`, Done,
			`{"size_bytes":3145728,"load_bytes":524288,"bytes_per_second":1048576}`},
		{"times", `{"timestamp_unix_ms":1500}`, Done, `{"timestamp":"1970-01-01T00:00:01.5Z"}`},
		{"texts", `["<&>","\u0000"]`, Done, `["<&>","\u0000"]`},
	} {
		got, err := Form([]byte(c.doc), c.keys)
		require.NoError(t, err, c.name)
		require.JSONEq(t, c.want, string(got), c.name)
	}
	for _, wrong := range []string{``, `{`, `[1`, `{"start":"x"}`} {
		_, err := Form([]byte(wrong), Hex)
		require.Error(t, err, wrong)
	}
	got, err := Of(map[string]string{"b": "<"}, Done)
	require.NoError(t, err)
	require.Equal(t, "{\n  \"b\": \"<\"\n}\n", string(got))
}

// TestOrder: members stay in their order.
func TestOrder(t *testing.T) {
	got, err := Form([]byte(`{"z":1,"a":[],"id":2}`), Done)
	require.NoError(t, err)
	require.Equal(t, "{\n  \"z\": 1,\n  \"a\": [],\n  \"id\": \"2\"\n}\n", string(got))
}
