package rpc

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// TestMetadataRoundTrip: what EachHeader makes of metadata, AppendMetadata reads.
func TestMetadataRoundTrip(t *testing.T) {
	md := metadata.MD{
		"a": {"x", "", "y,z"}, "some-bin": {"", "\x00\x01,\xff", "four", "fives"}, "k-_.9": {"~ !"},
	}
	require.NoError(t, CheckMetadata(md))
	var got metadata.MD
	size := 0
	EachHeader(md, func(name, value string) {
		var err error
		got, err = AppendMetadata(got, name, value)
		require.NoError(t, err)
		size += len(name) + len(value) + 32
	})
	require.Equal(t, md, got)
	require.Equal(t, size, MetadataSize(md))
}

func TestBinaryMetadata(t *testing.T) {
	for value, want := range map[string][]string{
		"": {""}, "YQ": {"a"}, "YQ==": {"a"}, "YWJj": {"abc"},
		"YQ,YWI=,,YWJj": {"a", "ab", "", "abc"}, "+/+/": {"\xfb\xff\xbf"},
	} {
		md, err := AppendMetadata(nil, "v-bin", value)
		require.NoError(t, err, value)
		require.Equal(t, want, md["v-bin"], value)
	}
	for _, value := range []string{"=", "Y", "YQ=", "-_-_", "a b"} {
		_, err := AppendMetadata(nil, "v-bin", value)
		require.Equal(t, codes.Internal, status.Code(err), value)
	}
}

func TestMetadataThatCannotBeSent(t *testing.T) {
	for _, md := range []metadata.MD{
		{"A": {"x"}}, {"a b": {"x"}}, {"\u00e4": {"x"}}, {"a": {"\n"}}, {"a": {"\u00e4"}},
		{"a": {"\x7f"}},
	} {
		require.Equal(t, codes.Internal, status.Code(CheckMetadata(md)), "%q", md)
	}
	for _, name := range []string{
		":path", "te", "grpc-status", "content-type", "connection", "grpc-timeout", "host", "",
	} {
		md := metadata.MD{name: {"x"}}
		require.NoError(t, CheckMetadata(md))
		EachHeader(md, func(name, _ string) { t.Errorf("%q is the protocol's", name) })
	}
}

// TestDetails: they survive, unless they are too large, malformed or those of another status.
func TestDetails(t *testing.T) {
	st, err := status.New(codes.NotFound, "no \u00e4").WithDetails(durationpb.New(7))
	require.NoError(t, err)
	plain := status.New(st.Code(), st.Message())
	got := DecodeDetails(plain, EncodeDetails(st))
	require.Equal(t, st.Proto().String(), got.Proto().String())
	require.Equal(t, durationpb.New(7).Nanos, got.Details()[0].(*durationpb.Duration).Nanos)
	require.Empty(t, EncodeDetails(plain))
	other := status.New(codes.Aborted, "x")
	for _, value := range []string{"", "*", "AAAA", EncodeDetails(st)} {
		require.Same(t, other, DecodeDetails(other, value), value)
	}
	for range 10 {
		st, err = st.WithDetails(st.Proto())
		require.NoError(t, err)
	}
	require.Empty(t, EncodeDetails(st), "larger than what is sent")
}
