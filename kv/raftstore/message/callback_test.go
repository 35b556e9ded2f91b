package message

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
)

func TestCallbackAnswersOnce(t *testing.T) {
	c := NewCallback()
	first := errors.New("first")
	c.Fail(first)
	c.Done(Result{}) // ignored, and does not block
	res, err := c.Wait(context.Background())
	require.NoError(t, err)
	require.Equal(t, first, res.Err)
	require.True(t, c.Answered())
}

func TestCallbackWaitHonoursContext(t *testing.T) {
	c := NewCallback()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := c.Wait(ctx)
	require.ErrorIs(t, err, context.Canceled)
	require.False(t, c.Answered())
}

func TestNilCallbackWantsNoAnswer(t *testing.T) {
	var c *Callback
	c.Done(Result{})
	c.Fail(errors.New("x"))
	require.True(t, c.Answered())
}

func TestCallbackConcurrentAnswers(t *testing.T) {
	c := NewCallback()
	var wg sync.WaitGroup
	for range 8 {
		wg.Add(1)
		go func() { defer wg.Done(); c.Done(Result{}) }()
	}
	wg.Wait()
	_, err := c.Wait(context.Background())
	require.NoError(t, err)
}

// TestWaited: times of a write are kept modulo 71 minutes.
func TestWaited(t *testing.T) {
	for _, came := range []time.Duration{
		0, time.Second, time.Hour, 71*time.Minute + 34*time.Second, 10 * 24 * time.Hour,
	} {
		var w Write
		w.Came(came)
		require.Zero(t, w.Waited(came))
		require.Equal(t, 70*time.Minute, w.Waited(came+70*time.Minute), came)
	}
}

// TestWritesStaySmall: what is allocated for every write does not grow with what only some commands
// have.
func TestWritesStaySmall(t *testing.T) {
	require.LessOrEqual(t, unsafe.Sizeof(Callback{}), uintptr(64))
	require.LessOrEqual(t, unsafe.Sizeof(Write{}), uintptr(224))
}
