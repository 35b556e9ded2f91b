// Package rpctest has what the tests of pkg/rpc and its rooms share: a service, and clients and
// servers that say what they like on the wire. No program links it.
package rpctest

import (
	"context"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
)

// TestService is what gRPC's interoperability tests call.
type TestService struct {
	grpc_testing.UnimplementedTestServiceServer
	// Began gets each message of an input stream that was taken, cancelled each stream whose client
	// went away.
	Began     chan struct{}
	Cancelled chan error
}

// NewTestService makes the service.
func NewTestService() *TestService {
	return &TestService{Began: make(chan struct{}, 16), Cancelled: make(chan error, 16)}
}

// Payload has n bytes.
func Payload(n int32) *grpc_testing.Payload { return &grpc_testing.Payload{Body: make([]byte, n)} }

func echoStatus(s *grpc_testing.EchoStatus) error {
	if s.GetCode() == 0 {
		return nil
	}
	return status.Error(codes.Code(s.Code), s.Message)
}

// EmptyCall implements grpc_testing.TestServiceServer.
func (s *TestService) EmptyCall(context.Context, *grpc_testing.Empty) (*grpc_testing.Empty, error) {
	return new(grpc_testing.Empty), nil
}

// UnaryCall implements grpc_testing.TestServiceServer.
func (s *TestService) UnaryCall(
	_ context.Context, req *grpc_testing.SimpleRequest,
) (*grpc_testing.SimpleResponse, error) {
	if err := echoStatus(req.ResponseStatus); err != nil {
		return nil, err
	}
	return &grpc_testing.SimpleResponse{Payload: Payload(req.ResponseSize)}, nil
}

// StreamingInputCall implements grpc_testing.TestServiceServer.
func (s *TestService) StreamingInputCall(
	st grpc_testing.TestService_StreamingInputCallServer,
) error {
	sum := 0
	for {
		req, err := st.Recv()
		if err == io.EOF {
			return st.SendAndClose(&grpc_testing.StreamingInputCallResponse{
				AggregatedPayloadSize: int32(sum),
			})
		}
		if err != nil {
			s.Cancelled <- err
			return err
		}
		sum += len(req.Payload.Body)
		s.Began <- struct{}{}
	}
}

// StreamingOutputCall implements grpc_testing.TestServiceServer.
func (s *TestService) StreamingOutputCall(
	req *grpc_testing.StreamingOutputCallRequest, st grpc_testing.TestService_StreamingOutputCallServer,
) error {
	if err := echoStatus(req.ResponseStatus); err != nil {
		return err
	}
	for _, p := range req.ResponseParameters {
		if err := st.Send(&grpc_testing.StreamingOutputCallResponse{
			Payload: Payload(p.Size),
		}); err != nil {
			return err
		}
	}
	return nil
}

// FullDuplexCall implements grpc_testing.TestServiceServer.
func (s *TestService) FullDuplexCall(st grpc_testing.TestService_FullDuplexCallServer) error {
	for {
		req, err := st.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			s.Cancelled <- err
			return err
		}
		if err := s.StreamingOutputCall(req, st); err != nil {
			s.Cancelled <- err
			return err
		}
	}
}

// Outputs are the parameters of answers of such sizes.
func Outputs(sizes ...int32) (out []*grpc_testing.ResponseParameters) {
	for _, n := range sizes {
		out = append(out, &grpc_testing.ResponseParameters{Size: n})
	}
	return out
}
