package server

import (
	"cmp"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"

	"github.com/tinykv/tinykv/pkg/rpc"
	"github.com/tinykv/tinykv/proto/codec"
)

// Budget is the core's, for those who know this room only.
type Budget = rpc.Budget

// OnCorrupt is the core's.
type OnCorrupt = rpc.OnCorrupt

// Options are the limits of a Server. A zero value means the default in parentheses.
type Options struct {
	// MaxRecv and MaxSend bound one message, in bytes (4 MiB each).
	MaxRecv, MaxSend int
	// MaxStreams bounds the calls of one connection whose handlers have not returned (1,024). A
	// call that its client has cancelled counts until then: a client cannot start more work by
	// cancelling (CVE-2023-44487).
	MaxStreams uint32
	// MaxConns bounds the connections (4,096), MaxConnsPerHost those of clients at one address
	// (half of them).
	MaxConns, MaxConnsPerHost int
	// MaxHandshakes bounds the connections that have not greeted yet (a quarter of MaxConns, at
	// least 16).
	MaxHandshakes int
	// MaxHeaderBytes bounds the headers of a call, in bytes as HTTP/2 counts them (16 KiB).
	MaxHeaderBytes uint32
	// FirstWindow is how much of a call's messages a client may send unasked (65,535, the least
	// that is possible: clients begin with that). ConnWindow is how much it may send ahead of this
	// server (8 MiB).
	FirstWindow, ConnWindow uint32
	// StreamWindow is how much a client may send ahead of a stream's handler, while
	// MaxStreamWindows, in bytes, allow (1 MiB, 64 MiB); other streams keep FirstWindow. Those of
	// internal methods have four times the window, and as many windows of their own.
	StreamWindow     uint32
	MaxStreamWindows int64
	// MaxRequests bounds the bytes of requests that need more than one frame, from their first
	// frame to their answers, and of metadata of more than 1 KiB a call (64 MiB); at least twice
	// MaxRecv. Those of internal methods have twice as many of their own. See intake.
	MaxRequests int64
	// MaxAnswers bounds the bytes of answers that clients have not taken (64 MiB; at least four
	// times MaxSend).
	MaxAnswers int64
	// MaxWait is how long a request waits for that until it is answered as busy (5 s). Stall is how
	// long a request, or a client that has answers to take, may make no progress (30 s).
	MaxWait, Stall time.Duration
	// Handshake is how long a new connection may take to say that it speaks HTTP/2 (10 s).
	Handshake time.Duration
	// KeepAlive is how long a connection may be silent before it is asked for a sign of life, and
	// KeepAliveTimeout how long that may take (30 s, 10 s).
	KeepAlive, KeepAliveTimeout time.Duration
	// MinPing is how far apart a client's pings must be while nothing is sent to it (2 s).
	MinPing time.Duration
	// Codec encodes messages (proto/codec).
	Codec encoding.CodecV2
	// OnCorrupt is called for messages that were damaged on their way; may be nil.
	OnCorrupt OnCorrupt
	// OnSlow is called for requests of unary methods, and those that Timing counts, that took
	// SlowAfter or longer; may be nil. It must not wait for anything. SetSlowAfter
	// changes it.
	SlowAfter time.Duration
	OnSlow    OnSlow
	// UnaryInterceptors and StreamInterceptors stand before the handlers of all registered methods,
	// the first outermost, as grpc.ChainUnaryInterceptor has it; after Guard. With a unary one no
	// call is handled inline (HandleInline), since it would pass by. What a handler receives by
	// Stream.OnMessage passes by the stream that an interceptor has put around it.
	UnaryInterceptors  []grpc.UnaryServerInterceptor
	StreamInterceptors []grpc.StreamServerInterceptor
}

// OnSlow is given a request's method, how long it took and how it ended.
type OnSlow func(path string, took time.Duration, code codes.Code)

func (o *Options) setDefaults() {
	o.MaxRecv = cmp.Or(o.MaxRecv, 4<<20)
	o.MaxSend = cmp.Or(o.MaxSend, 4<<20)
	o.MaxStreams = cmp.Or(o.MaxStreams, 1024)
	o.MaxConns = cmp.Or(o.MaxConns, 4096)
	o.MaxConns = max(o.MaxConns, 4)
	o.MaxConnsPerHost = cmp.Or(o.MaxConnsPerHost, o.MaxConns/2)
	o.MaxHandshakes = cmp.Or(o.MaxHandshakes, max(o.MaxConns/4, 16))
	o.MaxHeaderBytes = cmp.Or(o.MaxHeaderBytes, 16<<10)
	o.FirstWindow = cmp.Or(o.FirstWindow, rpc.InitialWindow)
	o.StreamWindow = cmp.Or(o.StreamWindow, 1<<20)
	o.ConnWindow = cmp.Or(o.ConnWindow, 8<<20)
	o.MaxStreamWindows = cmp.Or(o.MaxStreamWindows, 64<<20)
	o.MaxRequests = cmp.Or(o.MaxRequests, 64<<20)
	o.MaxAnswers = cmp.Or(o.MaxAnswers, 64<<20)
	o.MaxAnswers = max(o.MaxAnswers, 4*int64(o.MaxSend))
	o.MaxRequests = max(o.MaxRequests, 2*int64(o.MaxRecv))
	o.MaxWait = cmp.Or(o.MaxWait, 5*time.Second)
	o.Stall = cmp.Or(o.Stall, 30*time.Second)
	o.FirstWindow = min(max(o.FirstWindow, rpc.InitialWindow), rpc.MaxWindow)
	o.StreamWindow = min(max(o.StreamWindow, o.FirstWindow), rpc.MaxWindow/4)
	o.ConnWindow = min(max(o.ConnWindow, rpc.InitialWindow), rpc.MaxWindow)
	o.Handshake = cmp.Or(o.Handshake, 10*time.Second)
	o.KeepAlive = cmp.Or(o.KeepAlive, 30*time.Second)
	o.KeepAliveTimeout = cmp.Or(o.KeepAliveTimeout, 10*time.Second)
	o.MinPing = cmp.Or(o.MinPing, 2*time.Second)
	if o.Codec == nil {
		o.Codec = codec.New()
	}
}
