package client

import (
	"context"
	"math"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/pkg/rpc"
)

// callInfo is what the options and the context ask of a call. It does not change once the call
// begins, but for header and trailer: those the connection's lock guards until the call is gone,
// and then they are its caller's.
type callInfo struct {
	md               metadata.MD
	maxRecv, maxSend int
	// compressor makes the requests smaller; nil: they go as they are.
	compressor encoding.Compressor
	// waits: the call waits for a connection as long as its context allows.
	waits bool
	// secret: the metadata must not be seen by others.
	secret bool
	// What to fill in when the call has ended, and to call then.
	headerTo, trailerTo []*metadata.MD
	peerTo              []*peer.Peer
	onFinish            []func(error)

	// header and trailer are what the server has sent.
	header, trailer metadata.MD
}

// newCallInfo reads context and options; nil if they ask for nothing. Options that are not
// mentioned have no effect; those that would change what is on the wire, and are not supported, are
// refused. Errors are statuses.
func (c *Client) newCallInfo(
	ctx context.Context, method string, opts []grpc.CallOption,
) (*callInfo, error) {
	md, ok := metadata.FromOutgoingContext(ctx)
	if !ok && len(opts) == 0 {
		return nil, nil
	}
	info := &callInfo{md: md}
	for _, o := range opts {
		if err := info.apply(ctx, c.addr, method, o); err != nil {
			return nil, err
		}
	}
	if info.compressor != nil && c.opts.Checksum {
		// A decompressor does not skip what stands behind its data, as a decoder of messages does.
		return nil, status.Error(codes.Unimplemented, "messages with checksums are not compressed")
	}
	if err := rpc.CheckMetadata(info.md); err != nil {
		return nil, err
	}
	return info, nil
}

func (info *callInfo) apply(ctx context.Context, addr, method string, o grpc.CallOption) error {
	switch o := o.(type) {
	case grpc.HeaderCallOption:
		info.headerTo = append(info.headerTo, o.HeaderAddr)
	case grpc.TrailerCallOption:
		info.trailerTo = append(info.trailerTo, o.TrailerAddr)
	case grpc.PeerCallOption:
		info.peerTo = append(info.peerTo, o.PeerAddr)
	case grpc.OnFinishCallOption:
		info.onFinish = append(info.onFinish, o.OnFinish)
	case grpc.FailFastCallOption:
		info.waits = !o.FailFast
	case grpc.MaxRecvMsgSizeCallOption:
		info.maxRecv = limitOf(o.MaxRecvMsgSize)
	case grpc.MaxSendMsgSizeCallOption:
		info.maxSend = limitOf(o.MaxSendMsgSize)
	case grpc.PerRPCCredsCallOption:
		return info.authenticate(ctx, addr, method, o.Creds)
	case grpc.CompressorCallOption:
		return info.compress(o.CompressorType)
	case grpc.ContentSubtypeCallOption:
		return checkSubtype(o.ContentSubtype)
	case grpc.ForceCodecCallOption:
		return checkSubtype(o.Codec.Name())
	case grpc.ForceCodecV2CallOption:
		return checkSubtype(o.CodecV2.Name())
	}
	return nil
}

// limitOf is a limit of an option, where 0 is one as well, as none is not.
func limitOf(n int) int {
	if n <= 0 {
		return -1
	}
	return min(n, math.MaxInt32)
}

// checkSubtype refuses encodings of messages other than protocol buffers: a client encodes with
// Options.Codec.
func checkSubtype(subtype string) error {
	if subtype == "" || strings.EqualFold(subtype, "proto") {
		return nil
	}
	return status.Errorf(codes.Unimplemented,
		"messages are protocol buffers here: content-subtype %q is not supported", subtype)
}

func (info *callInfo) compress(name string) error {
	if name == "" || name == encoding.Identity {
		return nil
	}
	if info.compressor = encoding.GetCompressor(name); info.compressor == nil {
		return status.Errorf(codes.Internal, "no compressor for grpc-encoding %q", name)
	}
	return nil
}

// authenticate adds the credentials' metadata.
func (info *callInfo) authenticate(
	ctx context.Context, addr, method string, creds credentials.PerRPCCredentials,
) error {
	info.secret = info.secret || creds.RequireTransportSecurity()
	service := method[:max(strings.LastIndexByte(method, '/'), 0)]
	more, err := creds.GetRequestMetadata(ctx, "https://"+addr+service)
	if err != nil {
		if st, ok := status.FromError(err); ok {
			return st.Err()
		}
		return status.Errorf(codes.Unauthenticated, "credentials of the call: %v", err)
	}
	if info.md == nil {
		info.md = metadata.MD{}
	}
	for k, v := range more {
		k = strings.ToLower(k)
		info.md[k] = append(info.md[k], v)
	}
	return nil
}

// encoding is the name of the compressor; "" if there is none.
func (info *callInfo) encoding() string {
	if info == nil || info.compressor == nil {
		return ""
	}
	return info.compressor.Name()
}

// finish hands out what the call's end has brought; l is nil if there was no connection.
func (info *callInfo) finish(l *link, err error) {
	if info == nil {
		return
	}
	for _, to := range info.headerTo {
		*to = info.header
	}
	for _, to := range info.trailerTo {
		*to = info.trailer
	}
	for _, to := range info.peerTo {
		if l != nil {
			*to = *l.peer()
		}
	}
	for _, f := range info.onFinish {
		f(err)
	}
}

// ready waits for a connection, if the call is to wait also for a server that cannot be reached.
func (c *Client) ready(ctx context.Context, info *callInfo) (*link, error) {
	for {
		l, err := c.connected(ctx)
		if err == nil || info == nil || !info.waits || status.Code(err) != codes.Unavailable {
			return l, err
		}
		if err := c.pause(ctx); err != nil {
			return nil, &notSent{st: status.FromContextError(err), dialing: true}
		}
	}
}

// pause waits until another attempt to connect may be made, and returns the context's error if it
// ends before.
func (c *Client) pause(ctx context.Context) error {
	c.mu.Lock()
	left := time.Until(c.mu.retry)
	c.mu.Unlock()
	ctx, stop := timed(ctx)
	defer stop()
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-c.ctx.Done(): // the next attempt says so
	}
	return ctx.Err()
}
