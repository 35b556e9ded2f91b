package security_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/pkg/security"
)

// TestClientTLS: the scheme of the endpoints decides, and a CA where there is none.
func TestClientTLS(t *testing.T) {
	list := func(endpoints ...string) []string { return endpoints }
	for _, plain := range [][]string{nil, list("a:1"), list("http://a:1", "b:1")} {
		cfg, err := security.ClientTLS(plain, security.Files{})
		require.NoError(t, err)
		require.Nil(t, cfg)
	}
	cfg, err := security.ClientTLS(list("https://a:1", " https://b:1"), security.Files{})
	require.NoError(t, err)
	require.NotNil(t, cfg)
	require.False(t, cfg.InsecureSkipVerify)
	for want, f := range map[string]security.Files{
		"no such file": {CA: "/does/not/exist"}, "go together": {Cert: "x"},
		"certificate x": {Cert: "x", Key: "y"},
	} {
		_, err := security.ClientTLS(list("https://a:1"), f)
		require.ErrorContains(t, err, want)
	}
	_, err = security.ClientTLS(list("a:1"), security.Files{CA: "/does/not/exist"})
	require.ErrorContains(t, err, "no such file", "a CA means TLS")
	for want, bad := range map[string][]string{
		"in the same way": list("https://a:1", "http://b:1"), "neither": list("unix://a"),
	} {
		_, err := security.ClientTLS(bad, security.Files{})
		require.ErrorContains(t, err, want)
	}
	_, err = security.ClientTLS(list("http://a:1"), security.Files{CA: "x"})
	require.ErrorContains(t, err, "write it as https://")
}
