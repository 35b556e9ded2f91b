package embed

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/tinykv/tinykv/kv/client/txn"
	storeconfig "github.com/tinykv/tinykv/kv/config"
	"github.com/tinykv/tinykv/pkg/memcomparable"
	"github.com/tinykv/tinykv/pkg/redact"
)

// secret begins every key. It is short enough for one group of a memcomparable key, so that its hex
// is in theirs.
const secret = "SeCr\xe8t"

// lockedBuffer keeps what several servers log.
type lockedBuffer struct {
	mu  sync.Mutex
	out bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.Write(p)
}

func (b *lockedBuffer) bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.out.Bytes())
}

// forms are the ways in which secret would stand in a log.
func forms() []string {
	out := []string{
		secret, hex.EncodeToString([]byte(secret)),
		strings.ToUpper(hex.EncodeToString([]byte(secret))), "SeCr",
		strings.Trim(fmt.Sprint([]byte(secret)), "[]"),
		strings.ReplaceAll(strings.Trim(fmt.Sprint([]byte(secret)), "[]"), " ", ","),
		strings.Trim(fmt.Sprintf("% x", secret), " "),
	}
	for shift := range 3 { // what of base64 does not depend on the bytes around it
		text := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + secret))
		out = append(out, text[(shift*8+5)/6:len(secret)*8/6+shift])
	}
	return out
}

// TestKeysInLogs: with redact-keys no key is in the log in any form; without, the same lines have
// them.
func TestKeysInLogs(t *testing.T) {
	for _, engine := range []string{"pebble", "badger"} {
		for _, redacted := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/redacted=%v", engine, redacted), func(t *testing.T) {
				var file lockedBuffer
				out := io.Writer(&file)
				if redacted {
					out = redact.New().Writer(out)
				}
				encoder := zapcore.NewConsoleEncoder(zap.NewProductionEncoderConfig())
				logger := zap.New(zapcore.NewCore(encoder, zapcore.AddSync(out), zap.DebugLevel))
				c, err := Start(t.Context(), Config{
					Txn: true, Stores: 2, Logger: logger,
					TuneStore: func(_ int, s *storeconfig.Config) {
						s.Storage.Engine, s.Storage.MemTable = engine, storeconfig.MiB
						s.Raftstore.SplitCheckInterval = storeconfig.Dur(100 * time.Millisecond)
					},
				})
				require.NoError(t, err)
				talkAboutKeys(t, c)
				require.NoError(t, c.Stop())
				lines := file.bytes()
				require.Greater(t, bytes.Count(lines, []byte("split region")), 1)
				if !redacted {
					require.Contains(t, string(lines),
						redact.Key(memcomparable.Encode([]byte(secret+"-m"))).String())
					return
				}
				require.Contains(t, string(lines), "h'")
				for _, form := range forms() {
					at := bytes.Index(lines, []byte(form))
					require.Negative(t, at, "%q: %s", form,
						lines[max(0, at-300):max(0, min(len(lines), at+100))])
				}
			})
		}
	}
}

// talkAboutKeys provokes lines: writes and tables that are flushed, splits, conflicts, locks of a
// dead client, requests that come too late, and errors with keys that a store tells in its log.
func talkAboutKeys(t *testing.T, c *Cluster) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cl, err := c.TxnClient(ctx)
	require.NoError(t, err)
	defer cl.Close()
	value := bytes.Repeat([]byte("v"), 16<<10)
	for round := range 20 {
		require.NoError(t, cl.Run(ctx, func(x *txn.Txn) error {
			for i := range 10 {
				x.Set(fmt.Appendf(nil, "%s-%c%d", secret, 'a'+round, i), value)
			}
			return nil
		}))
	}
	for _, at := range []string{"-f", "-m"} {
		splitAt(t, c, secret+at)
	}
	x, err := cl.Begin(ctx)
	require.NoError(t, err)
	_, _, err = x.Get(ctx, []byte(secret+"-a1"))
	require.NoError(t, err)
	require.NoError(t,
		cl.Run(ctx, func(y *txn.Txn) error { y.Set([]byte(secret+"-a1"), nil); return nil }))
	x.Set([]byte(secret+"-a1"), nil)
	require.ErrorIs(t, x.Commit(ctx), txn.ErrConflict)
	late, end := context.WithTimeout(ctx, time.Nanosecond)
	defer end()
	require.Error(t,
		cl.Run(late, func(y *txn.Txn) error { y.Set([]byte(secret+"-z"), nil); return nil }))
	p, err := cl.BeginPessimistic(ctx)
	require.NoError(t, err)
	_, err = p.LockKeys(ctx, []byte(secret+"-n"))
	require.NoError(t, err)
	_, err = cl.Records(ctx, []byte(secret+"-n"))
	require.NoError(t, err)
	p.Rollback()
	c.Stores()[0].Kill()
	require.NoError(t, c.Stores()[0].Start(ctx))
	require.NoError(t, c.WaitReplicas(ctx))
}

// splitAt has the placement service split the region of a key of a transaction, and waits for the
// second region. The service knows a region when its leader has told of it, so it is asked until it
// does.
func splitAt(t *testing.T, c *Cluster, key string) {
	t.Helper()
	encoded := hex.EncodeToString(memcomparable.Encode([]byte(key)))
	base := "http://" + c.Endpoints()[0] + "/api/v1/regions"
	require.Eventually(t, func() bool {
		var found struct {
			Regions []struct {
				ID    uint64 `json:"id"`
				Start string `json:"start_key"`
			} `json:"regions"`
		}
		if !ask(t, "GET", base+"?hexkey="+encoded, "", &found) || len(found.Regions) == 0 {
			return false
		}
		// Refused while another operator for the region runs: the next question tells.
		ask(t, "POST", fmt.Sprintf("%s/%d/split", base, found.Regions[0].ID),
			fmt.Sprintf(`{"keys":[%q]}`, encoded), nil)
		return found.Regions[0].Start == encoded
	}, 30*time.Second, 100*time.Millisecond)
}

// ask calls the placement service over HTTP and tells whether it agreed.
func ask(t *testing.T, method, url, body string, out any) bool {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	require.NoError(t, err)
	req.Close = true
	req.Header.Set("Tinykv-Request", "1")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer func() { _ = resp.Body.Close() }()
	return resp.StatusCode == http.StatusOK &&
		(out == nil || json.NewDecoder(resp.Body).Decode(out) == nil)
}
