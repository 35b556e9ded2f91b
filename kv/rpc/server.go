package rpc

import (
	"errors"
	"fmt"
	"net"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"

	"github.com/tinykv/tinykv/proto/codec"
)

// errShed is why a connection ends that had no call when there was no room for others.
var errShed = errors.New("rpc: idle while there were too many connections")

// ErrStopped is returned by Serve once Stop or GracefulStop was called.
var ErrStopped = errors.New("rpc: stopped")

// Options are the limits of a Server. A zero value means the default in parentheses.
type Options struct {
	// MaxRecv and MaxSend bound one message, in bytes (4 MiB each).
	MaxRecv, MaxSend int
	// MaxStreams bounds the calls of one connection whose handlers have not returned (1,024). A call that its client
	// has cancelled counts until then: a client cannot start more work by cancelling (CVE-2023-44487).
	MaxStreams uint32
	// MaxConns bounds the connections (4,096), MaxConnsPerHost those of clients at one address (half of them).
	MaxConns, MaxConnsPerHost int
	// MaxHeaderBytes bounds the headers of a call, in bytes as HTTP/2 counts them (16 KiB).
	MaxHeaderBytes uint32
	// FirstWindow is how much of a call's messages a client may send unasked (65,535, the least that is possible: clients
	// begin with that). ConnWindow is how much it may send ahead of this server (8 MiB).
	FirstWindow, ConnWindow uint32
	// StreamWindow is how much a client may send ahead of a stream's handler, while MaxStreamWindows, in bytes, allow
	// (1 MiB, 64 MiB); other streams keep FirstWindow. Those of internal methods have four times the window, and as many
	// windows of their own.
	StreamWindow     uint32
	MaxStreamWindows int64
	// MaxRequests bounds the bytes of requests that need more than one frame, from their first frame to their answers
	// (64 MiB); at least twice MaxRecv. Those of internal methods have twice as many of their own. See intake.
	MaxRequests int64
	// MaxAnswers bounds the bytes of answers that clients have not taken (64 MiB; at least four times MaxSend).
	MaxAnswers int64
	// MaxWait is how long a request waits for that until it is answered as busy (5 s). Stall is how long a request, or a
	// client that has answers to take, may make no progress (30 s).
	MaxWait, Stall time.Duration
	// Handshake is how long a new connection may take to say that it speaks HTTP/2 (10 s).
	Handshake time.Duration
	// KeepAlive is how long a connection may be silent before it is asked for a sign of life, and KeepAliveTimeout
	// how long that may take (30 s, 10 s).
	KeepAlive, KeepAliveTimeout time.Duration
	// MinPing is how far apart a client's pings must be while nothing is sent to it (2 s).
	MinPing time.Duration
	// Codec encodes messages (proto/codec).
	Codec encoding.CodecV2
	// OnCorrupt is told of messages that were damaged on their way; may be nil.
	OnCorrupt OnCorrupt
}

func (o *Options) setDefaults() {
	setDefault(&o.MaxRecv, 4<<20)
	setDefault(&o.MaxSend, 4<<20)
	setDefault(&o.MaxStreams, 1024)
	setDefault(&o.MaxConns, 4096)
	o.MaxConns = max(o.MaxConns, 4)
	setDefault(&o.MaxConnsPerHost, o.MaxConns/2)
	setDefault(&o.MaxHeaderBytes, 16<<10)
	setDefault(&o.FirstWindow, initialWindow)
	setDefault(&o.StreamWindow, 1<<20)
	setDefault(&o.ConnWindow, 8<<20)
	setDefault(&o.MaxStreamWindows, 64<<20)
	setDefault(&o.MaxRequests, 64<<20)
	setDefault(&o.MaxAnswers, 64<<20)
	o.MaxAnswers = max(o.MaxAnswers, 4*int64(o.MaxSend))
	o.MaxRequests = max(o.MaxRequests, 2*int64(o.MaxRecv))
	setDefault(&o.MaxWait, 5*time.Second)
	setDefault(&o.Stall, 30*time.Second)
	o.FirstWindow = min(max(o.FirstWindow, initialWindow), maxWindow)
	o.StreamWindow = min(max(o.StreamWindow, o.FirstWindow), maxWindow/4)
	o.ConnWindow = min(max(o.ConnWindow, initialWindow), maxWindow)
	setDefault(&o.Handshake, 10*time.Second)
	setDefault(&o.KeepAlive, 30*time.Second)
	setDefault(&o.KeepAliveTimeout, 10*time.Second)
	setDefault(&o.MinPing, 2*time.Second)
	if o.Codec == nil {
		o.Codec = codec.New()
	}
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// InlineFunc handles a unary call on the goroutine that reads its connection: it must not wait for anything, and
// must not keep request, an encoded message, after it returns. If it returns true it has answered the call, or will
// answer it, exactly once, from whatever goroutine. If it returns false the registered handler is called.
type InlineFunc func(call *Call, request []byte) bool

// method is one RPC.
type method struct {
	path   string
	inline InlineFunc
	unary  grpc.MethodHandler
	stream grpc.StreamHandler
	impl   any
	// sum begins the checksums of its calls.
	sum uint32
	// internal: other stores call it, see connClass.
	internal bool
	// always: its answers are sent whatever room there is, since what they tell was carried out.
	always bool
	// guard decides who may call it; nil: everybody.
	guard func(nc net.Conn) error
	// busy makes the answer of a call that was not carried out; nil: a status.
	busy func(reason string) any
	// maxRecv and maxSend are those of the server, if the method has none of its own.
	maxRecv, maxSend int
}

// Server accepts connections and serves the registered services. Safe for concurrent use once it serves.
type Server struct {
	opts Options
	// methods by path, "/package.Service/Method"; services by name. Neither changes once Serve was called.
	methods  map[string]*method
	services map[string]grpc.ServiceInfo
	// work hands unary calls to the workers that wait for one; idle counts those, quit ends them.
	work chan *Call
	idle atomic.Int32
	quit chan struct{}

	mu struct {
		sync.Mutex
		serving   bool
		stopped   bool
		listeners map[net.Listener]struct{}
		conns     map[*conn]struct{}
		registry  registry
	}
	stats counters
	// intakes and windows bound what is held of requests: [0] for those of clients, [1] for those of other stores.
	intakes [2]*intake
	windows [2]*Budget
	// answers bounds what clients have not taken, readers are the connections that hold some of it.
	answers *Budget
	readers readers
	// wg counts connections, workers and handlers of streams.
	wg sync.WaitGroup
}

// New makes a server; nothing is started before Serve.
func New(o Options) *Server {
	o.setDefaults()
	s := &Server{opts: o, methods: map[string]*method{}, services: map[string]grpc.ServiceInfo{}, work: make(chan *Call), quit: make(chan struct{})}
	s.mu.listeners = map[net.Listener]struct{}{}
	s.mu.conns = map[*conn]struct{}{}
	s.mu.registry.hosts = map[string]int{}
	s.answers, s.readers.s = NewBudget(s.opts.MaxAnswers), s
	s.readers.mu.conns = map[*conn]struct{}{}
	for i := range s.intakes {
		s.intakes[i] = newIntake(&s.opts, s.opts.MaxRequests<<i, &s.stats)
		s.windows[i] = NewBudget(s.opts.MaxStreamWindows << (2 * i))
	}
	return s
}

// RegisterService implements grpc.ServiceRegistrar. It panics, as grpc.Server does, if impl does not implement the
// service, if the service is there already, or if the server serves already.
func (s *Server) RegisterService(sd *grpc.ServiceDesc, impl any) {
	s.mustNotServe("RegisterService")
	if want := reflect.TypeOf(sd.HandlerType).Elem(); impl != nil && !reflect.TypeOf(impl).Implements(want) {
		panic(fmt.Sprintf("rpc: %T does not implement %v", impl, want))
	}
	if _, ok := s.services[sd.ServiceName]; ok {
		panic(fmt.Sprintf("rpc: service %s is registered twice", sd.ServiceName))
	}
	info := grpc.ServiceInfo{Metadata: sd.Metadata}
	for _, m := range sd.Methods {
		path := "/" + sd.ServiceName + "/" + m.MethodName
		s.methods[path] = &method{
			path: path, unary: m.Handler, impl: impl, sum: methodSum(path), maxRecv: s.opts.MaxRecv, maxSend: s.opts.MaxSend,
		}
		info.Methods = append(info.Methods, grpc.MethodInfo{Name: m.MethodName})
	}
	for _, m := range sd.Streams {
		path := "/" + sd.ServiceName + "/" + m.StreamName
		s.methods[path] = &method{
			path: path, stream: m.Handler, impl: impl, sum: methodSum(path), maxRecv: s.opts.MaxRecv, maxSend: s.opts.MaxSend,
		}
		info.Methods = append(info.Methods,
			grpc.MethodInfo{Name: m.StreamName, IsClientStream: m.ClientStreams, IsServerStream: m.ServerStreams})
	}
	s.services[sd.ServiceName] = info
}

// HandleInline has f see the calls of a registered unary method first. It panics if there is no such method.
func (s *Server) HandleInline(path string, f InlineFunc) {
	s.mustNotServe("HandleInline")
	m := s.methods[path]
	if m == nil || m.unary == nil {
		panic(fmt.Sprintf("rpc: no unary method %s", path))
	}
	m.inline = f
}

// Limit gives a registered method its own bounds of one message. It panics if there is no such method.
func (s *Server) Limit(path string, maxRecv, maxSend int) {
	s.mustNotServe("Limit")
	m := s.methods[path]
	if m == nil {
		panic(fmt.Sprintf("rpc: no method %s", path))
	}
	m.maxRecv, m.maxSend = maxRecv, maxSend
}

// Internal says that a registered method is called by other stores: connections that call it are counted apart from
// those of clients. It panics if there is no such method.
func (s *Server) Internal(path string) {
	s.mustNotServe("Internal")
	m := s.methods[path]
	if m == nil {
		panic(fmt.Sprintf("rpc: no method %s", path))
	}
	m.internal = true
}

// Always has the answers of a registered unary method sent although there is no room for them: to be called for methods that
// change something and whose answers may be large. It panics if there is no such method.
func (s *Server) Always(path string) {
	s.mustNotServe("Always")
	m := s.methods[path]
	if m == nil || m.unary == nil {
		panic(fmt.Sprintf("rpc: no unary method %s", path))
	}
	m.always = true
}

// Guard has a function decide, by its connection, whether a call of a registered method is carried out; its error is the
// answer of those that are not. It panics if there is no such method.
func (s *Server) Guard(path string, may func(nc net.Conn) error) {
	s.mustNotServe("Guard")
	m := s.methods[path]
	if m == nil {
		panic(fmt.Sprintf("rpc: no method %s", path))
	}
	m.guard = may
}

// OnBusy says how calls of a registered unary method are answered that were not carried out because the server holds as
// much as it may; otherwise with the status ResourceExhausted. It panics if there is no such method.
func (s *Server) OnBusy(path string, answer func(reason string) any) {
	s.mustNotServe("OnBusy")
	m := s.methods[path]
	if m == nil || m.unary == nil {
		panic(fmt.Sprintf("rpc: no unary method %s", path))
	}
	m.busy = answer
}

func (s *Server) mustNotServe(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.serving {
		panic("rpc: " + what + " after Serve")
	}
}

// GetServiceInfo tells what is registered, for reflection.
func (s *Server) GetServiceInfo() map[string]grpc.ServiceInfo { return s.services }

// Serve accepts connections until the server is stopped, then returns ErrStopped, or until the listener fails. It
// closes the listener.
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

// begin is start without what must not be done under the lock: it returns connections that are to be shed.
func (s *Server) begin(nc net.Conn) []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.stopped {
		_ = nc.Close()
		return nil
	}
	host, now := hostOf(nc), time.Now()
	class, victims, ok := s.admitLocked(host, now)
	if !ok {
		s.stats.connsRefused.Add(1)
		_ = nc.Close()
		return nil
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

// Stop closes all connections, cancels the contexts of all handlers and returns when they have returned.
func (s *Server) Stop() {
	for _, c := range s.closeListeners() {
		c.close(ErrStopped)
	}
	s.wg.Wait()
}

// maxIdle is how many workers stay for the next unary call that cannot be answered inline: a new goroutine for each
// would have to grow its stack again.
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
