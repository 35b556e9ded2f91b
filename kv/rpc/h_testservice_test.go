package rpc

import (
	"context"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
)

// testService is what gRPC's interoperability tests call.
type testService struct {
	grpc_testing.UnimplementedTestServiceServer
	// began hears of each message of an input stream that was taken, cancelled of each stream whose client went away.
	began     chan struct{}
	cancelled chan error
}

func newTestService() *testService {
	return &testService{began: make(chan struct{}, 16), cancelled: make(chan error, 16)}
}

func payload(n int32) *grpc_testing.Payload { return &grpc_testing.Payload{Body: make([]byte, n)} }

func echoStatus(s *grpc_testing.EchoStatus) error {
	if s.GetCode() == 0 {
		return nil
	}
	return status.Error(codes.Code(s.Code), s.Message)
}

func (s *testService) EmptyCall(context.Context, *grpc_testing.Empty) (*grpc_testing.Empty, error) {
	return new(grpc_testing.Empty), nil
}

func (s *testService) UnaryCall(_ context.Context, req *grpc_testing.SimpleRequest) (*grpc_testing.SimpleResponse, error) {
	if err := echoStatus(req.ResponseStatus); err != nil {
		return nil, err
	}
	return &grpc_testing.SimpleResponse{Payload: payload(req.ResponseSize)}, nil
}

func (s *testService) StreamingInputCall(st grpc_testing.TestService_StreamingInputCallServer) error {
	sum := 0
	for {
		req, err := st.Recv()
		if err == io.EOF {
			return st.SendAndClose(&grpc_testing.StreamingInputCallResponse{AggregatedPayloadSize: int32(sum)})
		}
		if err != nil {
			s.cancelled <- err
			return err
		}
		sum += len(req.Payload.Body)
		s.began <- struct{}{}
	}
}

func (s *testService) StreamingOutputCall(req *grpc_testing.StreamingOutputCallRequest, st grpc_testing.TestService_StreamingOutputCallServer) error {
	if err := echoStatus(req.ResponseStatus); err != nil {
		return err
	}
	for _, p := range req.ResponseParameters {
		if err := st.Send(&grpc_testing.StreamingOutputCallResponse{Payload: payload(p.Size)}); err != nil {
			return err
		}
	}
	return nil
}

func (s *testService) FullDuplexCall(st grpc_testing.TestService_FullDuplexCallServer) error {
	for {
		req, err := st.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			s.cancelled <- err
			return err
		}
		if err := s.StreamingOutputCall(req, st); err != nil {
			s.cancelled <- err
			return err
		}
	}
}

func outputs(sizes ...int32) (out []*grpc_testing.ResponseParameters) {
	for _, n := range sizes {
		out = append(out, &grpc_testing.ResponseParameters{Size: n})
	}
	return out
}
