package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"reflect"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"

	"github.com/tinykv/tinykv/pkg/rpc"
)

// ErrStopped is returned by Serve once Stop or GracefulStop was called.
var ErrStopped = errors.New("rpc: stopped")

// InlineFunc handles a unary call on the goroutine that reads its connection: it must not wait for
// anything, and must not keep request, an encoded message, after it returns. If it returns true it
// has answered the call, or will answer it, exactly once, from whatever goroutine. If it returns
// false the registered handler is called.
type InlineFunc func(call *Call, request []byte) bool

// method is one RPC.
type method struct {
	path   string
	inline InlineFunc
	unary  grpc.MethodHandler
	stream grpc.StreamHandler
	// info describes a stream method to interceptors.
	info grpc.StreamServerInfo
	impl any
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
	timing           Timing
}

// Server accepts connections and serves the registered services. Safe for concurrent use once it
// serves.
type Server struct {
	opts Options
	slow slowCalls
	// methods by path, "/package.Service/Method"; services by name. Neither changes once Serve was
	// called.
	methods  map[string]*method
	services map[string]grpc.ServiceInfo
	// work hands unary calls to the workers that wait for one; idle counts those, quit ends them.
	work chan *Call
	idle atomic.Int32
	quit chan struct{}
	// unary and stream stand before the handlers; nil: nothing does.
	unary  grpc.UnaryServerInterceptor
	stream grpc.StreamServerInterceptor

	mu struct {
		sync.Mutex
		serving   bool
		stopped   bool
		listeners map[net.Listener]struct{}
		conns     map[*conn]struct{}
		registry  registry
	}
	stats counters
	// intakes and windows bound what is held of requests: [0] for those of clients, [1] for those
	// of other stores.
	intakes [2]*intake
	windows [2]*rpc.Budget
	// answers bounds what clients have not taken, readers are the connections that hold some of it.
	answers *rpc.Budget
	readers readers
	// wg counts connections, workers and handlers of streams.
	wg sync.WaitGroup
}

// New makes a server; nothing is started before Serve.
func New(o Options) *Server {
	o.setDefaults()
	s := &Server{
		opts: o, methods: map[string]*method{}, services: map[string]grpc.ServiceInfo{},
		work: make(chan *Call), quit: make(chan struct{}),
	}
	s.unary, s.stream = chainUnary(o.UnaryInterceptors), chainStream(o.StreamInterceptors)
	s.mu.listeners = map[net.Listener]struct{}{}
	s.mu.conns = map[*conn]struct{}{}
	s.mu.registry.hosts = map[string]int{}
	s.slow.report = s.opts.OnSlow
	s.slow.set(s.opts.SlowAfter)
	s.answers, s.readers.s = rpc.NewBudget(s.opts.MaxAnswers), s
	s.readers.mu.conns = map[*conn]struct{}{}
	for i := range s.intakes {
		s.intakes[i] = newIntake(&s.opts, s.opts.MaxRequests<<i, &s.stats)
		s.windows[i] = rpc.NewBudget(s.opts.MaxStreamWindows << (2 * i))
	}
	return s
}

// RegisterService implements grpc.ServiceRegistrar. It panics, as grpc.Server does, if impl does
// not implement the service, if the service is there already, or if the server serves already.
func (s *Server) RegisterService(sd *grpc.ServiceDesc, impl any) {
	s.mustNotServe("RegisterService")
	if want := reflect.TypeOf(sd.HandlerType).Elem(); impl != nil &&
		!reflect.TypeOf(impl).Implements(want) {
		panic(fmt.Sprintf("rpc: %T does not implement %v", impl, want))
	}
	if _, ok := s.services[sd.ServiceName]; ok {
		panic(fmt.Sprintf("rpc: service %s is registered twice", sd.ServiceName))
	}
	info := grpc.ServiceInfo{Metadata: sd.Metadata}
	for _, m := range sd.Methods {
		path := "/" + sd.ServiceName + "/" + m.MethodName
		s.methods[path] = &method{
			path: path, unary: m.Handler, impl: impl, sum: rpc.MethodSum(path),
			maxRecv: s.opts.MaxRecv, maxSend: s.opts.MaxSend,
			timing: Timing{path: path, slow: &s.slow},
		}
		info.Methods = append(info.Methods, grpc.MethodInfo{Name: m.MethodName})
	}
	for _, m := range sd.Streams {
		path := "/" + sd.ServiceName + "/" + m.StreamName
		s.methods[path] = &method{
			path: path, stream: m.Handler, impl: impl, sum: rpc.MethodSum(path),
			maxRecv: s.opts.MaxRecv, maxSend: s.opts.MaxSend,
			info: grpc.StreamServerInfo{
				FullMethod: path, IsClientStream: m.ClientStreams, IsServerStream: m.ServerStreams,
			},
		}
		info.Methods = append(info.Methods,
			grpc.MethodInfo{
				Name: m.StreamName, IsClientStream: m.ClientStreams,
				IsServerStream: m.ServerStreams,
			})
	}
	s.services[sd.ServiceName] = info
}

// HandleInline has f see the calls of a registered unary method first, unless there is a unary
// interceptor. It panics if there is no such method.
func (s *Server) HandleInline(path string, f InlineFunc) {
	s.mustNotServe("HandleInline")
	m := s.methods[path]
	if m == nil || m.unary == nil {
		panic(fmt.Sprintf("rpc: no unary method %s", path))
	}
	if s.unary == nil { // what is answered inline would pass by it
		m.inline = f
	}
}

// Limit gives a registered method its own bounds of one message. It panics if there is no such
// method.
func (s *Server) Limit(path string, maxRecv, maxSend int) {
	s.mustNotServe("Limit")
	m := s.methods[path]
	if m == nil {
		panic(fmt.Sprintf("rpc: no method %s", path))
	}
	m.maxRecv, m.maxSend = maxRecv, maxSend
}

// Internal says that a registered method is called by other stores: connections that call it are
// counted apart from those of clients. It panics if there is no such method.
func (s *Server) Internal(path string) {
	s.mustNotServe("Internal")
	m := s.methods[path]
	if m == nil {
		panic(fmt.Sprintf("rpc: no method %s", path))
	}
	m.internal = true
}

// Always has the answers of a registered unary method sent although there is no room for them: to
// be called for methods that change something and whose answers may be large. It panics if there is
// no such method.
func (s *Server) Always(path string) {
	s.mustNotServe("Always")
	m := s.methods[path]
	if m == nil || m.unary == nil {
		panic(fmt.Sprintf("rpc: no unary method %s", path))
	}
	m.always = true
}

// Guard has a function decide, by its connection, whether a call of a registered method is carried
// out; its error is the answer of those that are not. It panics if there is no such method.
func (s *Server) Guard(path string, may func(nc net.Conn) error) {
	s.mustNotServe("Guard")
	m := s.methods[path]
	if m == nil {
		panic(fmt.Sprintf("rpc: no method %s", path))
	}
	m.guard = may
}

// OnBusy says how calls of a registered unary method are answered that were not carried out because
// the server holds as much as it may; otherwise with the status ResourceExhausted. It panics if
// there is no such method.
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

// chainUnary makes one interceptor of several, of which the first is the outermost; nil of none.
func chainUnary(list []grpc.UnaryServerInterceptor) grpc.UnaryServerInterceptor {
	if len(list) < 2 {
		if len(list) == 1 {
			return list[0]
		}
		return nil
	}
	first, rest := list[0], chainUnary(list[1:])
	return func(
		ctx context.Context, req any, info *grpc.UnaryServerInfo, last grpc.UnaryHandler,
	) (any, error) {
		return first(ctx, req, info, func(ctx context.Context, req any) (any, error) {
			return rest(ctx, req, info, last)
		})
	}
}

// chainStream is chainUnary for streams.
func chainStream(list []grpc.StreamServerInterceptor) grpc.StreamServerInterceptor {
	if len(list) < 2 {
		if len(list) == 1 {
			return list[0]
		}
		return nil
	}
	first, rest := list[0], chainStream(list[1:])
	return func(
		impl any, st grpc.ServerStream, info *grpc.StreamServerInfo, last grpc.StreamHandler,
	) error {
		return first(impl, st, info, func(impl any, st grpc.ServerStream) error {
			return rest(impl, st, info, last)
		})
	}
}

// GetServiceInfo tells what is registered, for reflection.
func (s *Server) GetServiceInfo() map[string]grpc.ServiceInfo { return s.services }
