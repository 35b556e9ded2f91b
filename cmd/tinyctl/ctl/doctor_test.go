package ctl

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/scheduler/server/health"
)

// TestDoctorKnowsEveryCondition: each has a topic that is shown.
func TestDoctorKnowsEveryCondition(t *testing.T) {
	for _, k := range health.Table {
		require.True(t, slices.Contains(topics, topicOf[k.Code]), k.Code)
	}
}

// TestDoctorLooksAtFiles: a store that is short of open files is found, and one whose status port
// does not answer.
func TestDoctorLooksAtFiles(t *testing.T) {
	for metrics, want := range map[string]string{
		"process_open_fds 900\nprocess_max_fds 1000\n":    "has 900 of at most 1000 files open",
		"process_open_fds 10\nprocess_max_fds 1024\n":     "may have 1024 files open only",
		"process_open_fds 10\nprocess_max_fds 1.04e+06\n": "",
		"nothing 1\n":                     "",
		"process_max_fds high and wide\n": "does not answer",
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, metrics)
		}))
		found := filesOfStore(t.Context(),
			storeRow{ID: 1, Status: strings.TrimPrefix(s.URL, "http://")}, nil)
		s.Close()
		if want == "" {
			require.Empty(t, found)
			continue
		}
		require.Len(t, found, 1)
		require.Contains(t, found[0].What, want)
	}
	found := filesOfStore(t.Context(), storeRow{ID: 1, Status: "127.0.0.1:1"}, nil)
	require.Len(t, found, 1)
	require.Contains(t, found[0].What, "does not answer")
}
