package security_test

import (
	"bytes"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
)

// corked keeps what is written until it is asked for.
type corked struct {
	net.Conn
	on  bool
	out bytes.Buffer
}

func (c *corked) Write(b []byte) (int, error) {
	if !c.on {
		return c.Conn.Write(b)
	}
	return c.out.Write(b)
}

// TestRecordsThatComeTogether: one Read returns all records that have come at once, and only whole
// ones; whatever parts a network makes of them, all of it arrives in order.
func TestRecordsThatComeTogether(t *testing.T) {
	dir := authority(t)
	node := identity(t, certificate(t, dir, "node", "node", "127.0.0.1"))
	dialed, nc := connected(t, node)
	defer func() { _, _ = nc.Close(), dialed.Close() }()
	cork := &corked{Conn: dialed}
	cfg := node.Client("h2")
	cfg.ServerName = "127.0.0.1"
	client := tls.Client(cork, cfg)
	shaken := make(chan error, 1)
	go func() {
		err := client.Handshake()
		if err == nil {
			_, err = client.Write([]byte("x"))
		}
		shaken <- err
	}()
	_, err := io.ReadFull(nc, make([]byte, 1))
	require.NoError(t, err)
	require.NoError(t, <-shaken)

	cork.on = true
	for _, s := range []string{"one,", "two,", "three"} {
		_, err := client.Write([]byte(s))
		require.NoError(t, err)
	}
	_, err = dialed.Write(cork.out.Bytes())
	require.NoError(t, err)
	buf := make([]byte, 100)
	n, err := nc.Read(buf)
	require.NoError(t, err)
	require.Equal(t, "one,two,three", string(buf[:n]))
	cork.out.Reset()

	rng := rand.New(rand.NewPCG(1, 2))
	var want []byte
	for range 300 {
		b := make([]byte, 1+rng.IntN(1+rng.IntN(20000)))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		want = append(want, b...)
		_, err := client.Write(b)
		require.NoError(t, err)
	}
	sent := make(chan error, 1)
	go func() {
		var err error
		for wire := cork.out.Bytes(); len(wire) > 0 && err == nil; {
			part := min(1+rng.IntN(1+rng.IntN(40000)), len(wire))
			_, err = dialed.Write(wire[:part])
			wire = wire[part:]
		}
		_ = dialed.Close()
		sent <- err
	}()
	var got []byte
	for err == nil {
		n, err = nc.Read(buf[:1+rand.IntN(len(buf))])
		got = append(got, buf[:n]...)
		if len(buf) < 1<<15 {
			buf = make([]byte, 2*len(buf))
		}
	}
	require.NoError(t, <-sent)
	require.True(t, bytes.Equal(want, got))
}
