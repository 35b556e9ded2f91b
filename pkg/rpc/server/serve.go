package server

import (
	"errors"
	"net"
	"time"
)

// Serve accepts connections until the server is stopped, then returns ErrStopped, or until the
// listener fails. It closes the listener.
func (s *Server) Serve(l net.Listener) error {
	defer l.Close()
	s.mu.Lock()
	s.mu.serving = true
	if s.mu.stopped {
		s.mu.Unlock()
		return ErrStopped
	}
	s.mu.listeners[l] = struct{}{}
	s.mu.Unlock()
	pause := time.Duration(0)
	for {
		nc, err := l.Accept()
		switch {
		case err == nil:
			pause = 0
			s.start(nc)
		case s.isStopped():
			return ErrStopped
		case isTemporary(err): // out of file descriptors, most likely
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			time.Sleep(pause)
		default:
			return err
		}
	}
}

// isTemporary tells errors of Accept that pass, such as too many open files.
func isTemporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}

func (s *Server) isStopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.stopped
}

// start serves a new connection, if there is room for it.
func (s *Server) start(nc net.Conn) {
	for _, c := range s.begin(nc) {
		c.shed()
	}
}

// begin is start without what must not be done under the lock: it returns connections that are to
// be shed.
func (s *Server) begin(nc net.Conn) []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.stopped {
		_ = nc.Close()
		return nil
	}
	host, now := hostOf(nc), time.Now()
	slow, ok := s.roomToGreetLocked(now)
	var class connClass
	var victims []*conn
	if ok {
		class, victims, ok = s.admitLocked(host, now)
	}
	if victims = append(victims, slow...); !ok {
		s.stats.connsRefused.Add(1)
		_ = nc.Close()
		return victims
	}
	c := newConn(s, nc)
	s.enterLocked(c, class, host, now)
	s.wg.Add(1)
	// Owned by the server; ends with the connection, at the latest in Stop.
	go func() {
		defer s.wg.Done()
		c.serve()
		s.mu.Lock()
		s.forgetLocked(c)
		s.mu.Unlock()
	}()
	return victims
}

// closeListeners refuses new connections and returns those that exist.
func (s *Server) closeListeners() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.mu.stopped {
		close(s.quit)
	}
	s.mu.stopped = true
	for _, in := range s.intakes {
		in.stop()
	}
	s.readers.stop()
	for l := range s.mu.listeners {
		_ = l.Close()
	}
	conns := make([]*conn, 0, len(s.mu.conns))
	for c := range s.mu.conns {
		conns = append(conns, c)
	}
	return conns
}

// GracefulStop refuses new connections and calls, and returns when those under way have ended.
func (s *Server) GracefulStop() {
	for _, c := range s.closeListeners() {
		c.drain()
	}
	s.wg.Wait()
}

// Stop closes all connections, cancels the contexts of all handlers and returns when they have
// returned.
func (s *Server) Stop() {
	for _, c := range s.closeListeners() {
		c.close(ErrStopped)
	}
	s.wg.Wait()
}

// maxIdle is how many workers stay for the next unary call that cannot be answered inline: a new
// goroutine for each would have to grow its stack again.
const maxIdle = 128

// run carries out a unary call on a goroutine.
func (s *Server) run(call *Call) {
	select {
	case s.work <- call:
		return
	default:
	}
	s.wg.Add(1)
	// Owned by the server, which waits for it. It stays for further calls unless enough others do.
	go func(call *Call) {
		defer s.wg.Done()
		for {
			call.runUnary()
			if s.idle.Add(1) > maxIdle {
				s.idle.Add(-1)
				return
			}
			select {
			case call = <-s.work:
				s.idle.Add(-1)
			case <-s.quit:
				s.idle.Add(-1)
				return
			}
		}
	}(call)
}
