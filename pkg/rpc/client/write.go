package client

import (
	"errors"
	"io"
	"runtime"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/rpc"
)

// pumpLocked sends what waited for a window.
func (l *link) pumpLocked() {
	if l.mu.out.PumpLocked() {
		l.kickLocked()
	}
}

// kickLocked sees to it that the output is written soon.
func (l *link) kickLocked() {
	if !l.mu.reading {
		rpc.Wake(l.wake)
	}
}

// pushYielding writes the output. Calls of goroutines that can run now are put beside it, unless
// this is the only one.
func (l *link) pushYielding() {
	if l.mu.writing || l.mu.reading {
		return
	}
	if len(l.mu.calls) > 1 {
		l.mu.writing = true // the others leave it to this one
		l.mu.Unlock()
		runtime.Gosched()
		l.mu.Lock()
		l.mu.writing = false
	}
	l.flushYielding()
}

// writeLoop writes what others could not, until the connection ends.
func (l *link) writeLoop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.mu.closed == nil {
		if l.mu.writing || l.mu.out.Size == 0 {
			l.mu.Unlock()
			<-l.wake
			l.mu.Lock()
			continue
		}
		out := l.takeLocked()
		l.mu.Unlock()
		err := out.Flush(l.nc)
		l.mu.Lock()
		l.wroteLocked(err)
	}
}

// takeLocked takes the output to write it.
func (l *link) takeLocked() rpc.Output {
	l.mu.acks = 0
	l.mu.writing = true
	return l.mu.out.Take()
}

func (l *link) wroteLocked(err error) {
	l.mu.writing = false
	if err != nil {
		l.closeLocked(err)
	}
	l.wakeWaitersLocked()
}

// flushYielding writes the output without the lock, as far as the kernel takes it at once. It
// leaves the rest to the writer, and everything to a goroutine that writes already.
func (l *link) flushYielding() {
	for rounds := 0; l.mu.out.Size > 0 && l.mu.closed == nil; rounds++ {
		if l.mu.writing {
			return
		}
		if l.try == nil || rounds == 4 || !l.mu.out.IsOneChunk() {
			rpc.Wake(l.wake)
			return
		}
		out := l.takeLocked()
		l.mu.Unlock()
		left, err := out.Try(l.try)
		l.mu.Lock()
		if left {
			l.mu.out.Unread(out)
			l.mu.writing = false
			rpc.Wake(l.wake)
			return
		}
		l.wroteLocked(err)
	}
}

// waitYielding waits, without the lock, until something has changed or done is closed.
func (l *link) waitYielding(done <-chan struct{}) {
	ch := make(chan struct{})
	l.mu.waiters = append(l.mu.waiters, ch)
	l.mu.Unlock()
	select {
	case <-ch:
		l.mu.Lock()
	case <-done:
		l.mu.Lock()
		l.mu.waiters = slices.DeleteFunc(l.mu.waiters, func(w chan struct{}) bool {
			return w == ch
		})
	}
}

func (l *link) wakeWaitersLocked() {
	for _, ch := range l.mu.waiters {
		close(ch)
	}
	l.mu.waiters = nil
}

func (l *link) close(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closeLocked(err)
}

// closeLocked ends the connection and all its calls. The first reason counts.
func (l *link) closeLocked(err error) {
	if l.mu.closed != nil {
		return
	}
	if err == nil {
		err = io.EOF
	}
	l.shut.Store(true)
	l.mu.closed = err
	l.mu.out.CloseLocked()
	_ = l.nc.Close()
	l.keep.StopLocked()
	if l.mu.barred != nil {
		l.mu.barred.Stop()
	}
	if l.mu.sweep.timer != nil {
		l.mu.sweep.timer.Stop()
	}
	for _, call := range l.mu.calls {
		l.endLocked(call, l.lostLocked())
	}
	l.wakeWaitersLocked()
	rpc.Wake(l.wake)
}

// lostLocked is the error of calls that were under way when the connection ended.
func (l *link) lostLocked() error {
	code := codes.Unavailable
	if errors.Is(l.mu.closed, errClientClosed) {
		code = codes.Canceled
	}
	return status.Errorf(code, "connection to %s lost: %v", l.c.addr, l.mu.closed)
}
