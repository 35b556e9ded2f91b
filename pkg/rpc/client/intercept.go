package client

import (
	"context"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// interceptors are what stands before the calls of a Client that has any.
type interceptors struct {
	unary  grpc.UnaryClientInterceptor
	stream grpc.StreamClientInterceptor
	// conn is for interceptors only, whose type asks for one: it has the client's target, and makes
	// no connection unless an interceptor calls it.
	conn *grpc.ClientConn
}

// newInterceptors chains those of the options; nil if there are none. err is that of a target that
// grpc-go does not read.
func newInterceptors(addr string, o *Options) (*interceptors, error) {
	if len(o.UnaryInterceptors) == 0 && len(o.StreamInterceptors) == 0 {
		return nil, nil
	}
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return o.Dial(ctx, addr)
		}))
	if err != nil {
		return nil, err
	}
	return &interceptors{
		unary: chainUnary(o.UnaryInterceptors), stream: chainStream(o.StreamInterceptors),
		conn: conn,
	}, nil
}

// chainUnary makes one interceptor of several, of which the first is the outermost; nil of none.
func chainUnary(list []grpc.UnaryClientInterceptor) grpc.UnaryClientInterceptor {
	if len(list) < 2 {
		if len(list) == 1 {
			return list[0]
		}
		return nil
	}
	first, rest := list[0], chainUnary(list[1:])
	return func(
		ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, last grpc.UnaryInvoker, opts ...grpc.CallOption,
	) error {
		next := func(
			ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, opts ...grpc.CallOption,
		) error {
			return rest(ctx, method, req, reply, cc, last, opts...)
		}
		return first(ctx, method, req, reply, cc, next, opts...)
	}
}

// chainStream is chainUnary for streams.
func chainStream(list []grpc.StreamClientInterceptor) grpc.StreamClientInterceptor {
	if len(list) < 2 {
		if len(list) == 1 {
			return list[0]
		}
		return nil
	}
	first, rest := list[0], chainStream(list[1:])
	return func(
		ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, last grpc.Streamer, opts ...grpc.CallOption,
	) (grpc.ClientStream, error) {
		next := func(
			ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, opts ...grpc.CallOption,
		) (grpc.ClientStream, error) {
			return rest(ctx, desc, cc, method, last, opts...)
		}
		return first(ctx, desc, cc, method, next, opts...)
	}
}

// Invoke implements grpc.ClientConnInterface: one unary call.
func (c *Client) Invoke(
	ctx context.Context, method string, args, reply any, opts ...grpc.CallOption,
) error {
	if x := c.intercepts; x != nil && x.unary != nil {
		last := func(
			ctx context.Context, method string, args, reply any, _ *grpc.ClientConn, opts ...grpc.CallOption,
		) error {
			return c.invoke(ctx, method, args, reply, opts)
		}
		return x.unary(ctx, method, args, reply, x.conn, last, opts...)
	}
	return c.invoke(ctx, method, args, reply, opts)
}

// NewStream implements grpc.ClientConnInterface: it begins a stream. See StreamOf.
func (c *Client) NewStream(
	ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption,
) (grpc.ClientStream, error) {
	if x := c.intercepts; x != nil && x.stream != nil {
		last := func(
			ctx context.Context, desc *grpc.StreamDesc, _ *grpc.ClientConn, method string, opts ...grpc.CallOption,
		) (grpc.ClientStream, error) {
			return c.newStream(ctx, desc, method, opts)
		}
		return x.stream(ctx, desc, x.conn, method, last, opts...)
	}
	return c.newStream(ctx, desc, method, opts)
}
