package message

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
)

// An entry carries a checksum from the memory of its proposer to the apply worker of each replica:
// over the wire, through the raft log and its cache. It is the last field of the command, and
// covers all bytes before it. The wire and the log have checksums of their own; this one covers
// what lies between them.

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ChecksumSize is what AppendChecksum adds.
const ChecksumSize = 6

// ErrCorrupt says that an entry is not the one that was proposed.
var ErrCorrupt = errors.New("message: the checksum of an entry does not match")

// AppendChecksum completes a command.
func AppendChecksum(buf []byte) []byte {
	sum := crc32.Checksum(buf, castagnoli)
	return binary.LittleEndian.AppendUint32(append(buf, tagChecksum, 4), sum)
}

// checkSum compares the field at the end of data, before which n bytes stand.
func checkSum(data []byte, n int, field []byte) error {
	if len(field) != 4 || n+ChecksumSize != len(data) ||
		binary.LittleEndian.Uint32(field) != crc32.Checksum(data[:n], castagnoli) {
		return ErrCorrupt
	}
	return nil
}

// DecodeConfChange reads the data of a conf change and the command in it, and checks the command's
// checksum, if it has one, and that the change is what the command says. ErrCorrupt, or what is
// wrong with the frame.
func DecodeConfChange(
	data []byte,
) (cc eraftpb.ConfChange, cmd raft_cmdpb.RaftCmdRequest, err error) {
	if err := cc.Unmarshal(data); err != nil {
		return cc, cmd, fmt.Errorf("%w: conf change: %w", errPayload, err)
	}
	if len(cc.Context) == 0 {
		return cc, cmd, nil
	}
	if _, err := DecodeEntry(cc.Context); err != nil {
		return cc, cmd, err
	}
	if err := cmd.Unmarshal(cc.Context); err != nil {
		return cc, cmd, fmt.Errorf("%w: conf change: %w", errPayload, err)
	}
	req := cmd.GetAdminRequest().GetChangePeer()
	if len(cmd.Checksum) > 0 &&
		(req.GetPeer().GetId() != cc.NodeId || req.GetChangeType() != cc.ChangeType) {
		return cc, cmd,
			fmt.Errorf("conf change of peer %d carries one of peer %d: %w", cc.NodeId,
				req.GetPeer().GetId(), ErrCorrupt)
	}
	return cc, cmd, nil
}
