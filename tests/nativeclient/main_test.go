package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/tinykv/tinykv/pkg/embed"
)

// TestMain looks for leaked goroutines for a while: etcd's connections end only with their read
// timeout of five seconds.
func TestMain(m *testing.M) {
	code := m.Run()
	var leak error
	for end := time.Now().Add(10 * time.Second); code == 0 && time.Now().Before(end); {
		if leak = goleak.Find(); leak == nil {
			break
		}
	}
	if leak != nil && code == 0 {
		fmt.Fprintln(os.Stderr, leak)
		code = 1
	}
	os.Exit(code)
}

// Each kind of operation has its outcome, and the program ends with its input.
func TestRun(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := embed.Start(ctx, embed.Config{Stores: 1, Schedulers: 1})
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Stop()) }()
	addr := strings.TrimPrefix(c.Endpoints()[0], "http://")
	do := func(op operation) outcome {
		t.Helper()
		line, err := json.Marshal(op)
		require.NoError(t, err)
		var out bytes.Buffer
		require.NoError(t, run(addr, bytes.NewReader(line), &out))
		var got outcome
		require.NoError(t, json.Unmarshal(out.Bytes(), &got))
		return got
	}
	key, one, two := []byte("k"), []byte("1"), []byte("2")
	require.Equal(t, outcome{ID: 1}, do(operation{ID: 1, Kind: "get", Key: key}))
	require.Equal(t, outcome{}, do(operation{Kind: "put", Key: key, Value: one}))
	require.Equal(t, outcome{Found: true, Value: one}, do(operation{Kind: "get", Key: key}))
	require.Equal(t, outcome{Found: true, Value: one},
		do(operation{Kind: "swap", Key: key, Value: two}))
	require.Equal(t, outcome{Found: true, Value: one, Swapped: true},
		do(operation{Kind: "swap", Key: key, Expected: one, Value: two}))
	require.Equal(t, outcome{Found: true, Value: two}, do(operation{Kind: "scan", Key: key}))
	require.Equal(t, outcome{}, do(operation{Kind: "delete", Key: key}))
	require.Equal(t, outcome{}, do(operation{Kind: "scan", Key: key}))
	require.Contains(t, do(operation{Kind: "what"}).Error, "no such kind")
	require.Error(t, run(addr, strings.NewReader("no JSON"), io.Discard))
}
