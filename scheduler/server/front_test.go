package server

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"
)

// TestAnswersThatNobodyReads: an answer over HTTP that is not taken ends its connection after
// answerStall; one that is read slowly, and a stream of events that lasts longer, do not.
func TestAnswersThatNobodyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const large = 1 << 20
		mux := http.NewServeMux()
		mux.HandleFunc("GET /large", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, strings.Repeat("x", large))
		})
		mux.HandleFunc("GET /events", func(w http.ResponseWriter, _ *http.Request) {
			for range 10 {
				_, _ = io.WriteString(w, "#")
				_ = http.NewResponseController(w).Flush()
				time.Sleep(answerStall - time.Second)
			}
		})
		l := bufconn.Listen(64 << 10)
		f := newFront(4, 4, (*tls.Config)(nil), false)
		f.listeners = []net.Listener{asTCP{l}}
		f.h1, f.h2 = newHanded(l.Addr()), newHanded(l.Addr())
		f.serve(mux, func(*grpc.Server) {}, transportOptions())
		defer f.stop()
		get := func(path string) net.Conn {
			nc, err := l.Dial()
			require.NoError(t, err)
			_, err = io.WriteString(nc,
				"GET "+path+" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
			require.NoError(t, err)
			return nc
		}
		events := get("/events")
		data, err := io.ReadAll(events)
		require.NoError(t, err)
		require.Equal(t, 10, strings.Count(string(data), "#"), "of the stream")

		slow, began := get("/large"), time.Now()
		got, buf := 0, make([]byte, 32<<10)
		for err == nil {
			var n int
			n, err = slow.Read(buf)
			got += n
			time.Sleep(answerStall / 3)
		}
		require.ErrorIs(t, err, io.EOF)
		require.Greater(t, got, large)
		require.Greater(t, time.Since(began), 2*answerStall)
		require.Zero(t, f.unread.Load())

		unread := get("/large")
		time.Sleep(answerStall - time.Second)
		synctest.Wait()
		require.EqualValues(t, 1, f.open.Load())
		time.Sleep(2 * time.Second)
		synctest.Wait()
		require.Zero(t, f.open.Load())
		require.EqualValues(t, 1, f.unread.Load())
		for _, nc := range []net.Conn{events, slow, unread} {
			_ = nc.Close()
		}
	})
}
