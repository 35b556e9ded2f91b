package waiting

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func woken(w *Waiter) bool {
	select {
	case <-w.Woken():
		return true
	default:
		return false
	}
}

// TestOrder: the transaction that began first is woken at once, the others after it.
func TestOrder(t *testing.T) {
	var q Queues
	require.True(t, q.Idle())
	late, early, other := q.Join([]byte("k"), 30), q.Join([]byte("k"), 10), q.Join([]byte("l"), 5)
	require.False(t, q.Idle())
	require.True(t, early.First() && other.First() && !late.First())
	q.Wake([]byte("nobody's"))
	require.False(t, woken(early) || woken(late) || woken(other))
	q.Wake([]byte("k"))
	require.True(t, woken(early))
	require.False(t, woken(other))
	select {
	case <-late.Woken():
	case <-time.After(time.Minute):
		t.Fatal("the second one was not woken")
	}
	// A second wake before the first is looked at is one.
	q.Wake([]byte("k"))
	q.Wake([]byte("k"))
	require.True(t, woken(early))
	require.False(t, woken(early))
	early.Leave()
	q.Wake([]byte("k"))
	require.False(t, woken(early))
	late.Leave()
	other.Leave()
	require.True(t, q.Idle())
	require.Empty(t, q.mu.byKey)
}

// TestYield: who comes anew lets the first waiter try that was woken, unless it began before it.
func TestYield(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var q Queues
	key := []byte("k")
	first, second := q.Join(key, 10), q.Join(key, 20)
	require.Nil(t, q.turn(key, 30), "the lock has not gone")
	q.Yield(ctx, 30, key)
	q.Wake(key)
	q.Wake(key)
	require.Nil(t, q.turn(key, 5))
	turn := q.turn(key, 30)
	require.NotNil(t, turn)
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-turn
	}()
	first.Tried()
	first.Tried()
	<-done
	require.Nil(t, q.turn(key, 30))
	q.Wake(key)
	q.Yield(ctx, 30, []byte("j"), key) // at most for a moment
	first.Leave()
	require.Nil(t, q.turn(key, 30))
	q.Wake(key)
	require.NotNil(t, q.turn(key, 30))
	second.Leave()
	require.True(t, q.Idle())
}
