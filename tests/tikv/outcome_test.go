package tikv

import (
	"testing"

	"github.com/pingcap/kvproto/pkg/tikvpb"
	"github.com/stretchr/testify/require"
	"github.com/tikv/client-go/v2/tikvrpc"
)

// TestAnswerOfNoKind: client-go takes an answer without content for an error of the call. The store
// answers so within a batch if it does not know what became of a write. The answer is read off the
// wire, where an element without content is two bytes.
func TestAnswerOfNoKind(t *testing.T) {
	data, err := (&tikvpb.BatchCommandsResponse{
		Responses:  []*tikvpb.BatchCommandsResponse_Response{{}},
		RequestIds: []uint64{7},
	}).Marshal()
	require.NoError(t, err)
	require.Equal(t, []byte{0x0a, 0x00}, data[:2])
	sent := new(tikvpb.BatchCommandsResponse)
	require.NoError(t, sent.Unmarshal(data))
	require.Len(t, sent.Responses, 1)
	resp, err := tikvrpc.FromBatchCommandsResponse(sent.Responses[0])
	require.Error(t, err)
	require.Nil(t, resp)
}
