package message

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/tinykv/tinykv/proto/pkg/eraftpb"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
)

// An entry carries a checksum from the memory of its proposer to the apply worker of each replica: over the wire, through
// the raft log and its cache. It is the last field of the command, and covers all bytes before it. The wire and the log
// have checksums of their own; this one covers what lies between them.

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
	if len(field) != 4 || n+ChecksumSize != len(data) || binary.LittleEndian.Uint32(field) != crc32.Checksum(data[:n], castagnoli) {
		return ErrCorrupt
	}
	return nil
}

// Verify checks a raft entry's checksum, if it has one: entries of earlier versions have none. ErrCorrupt, or what is
// wrong with the frame.
func Verify(e *eraftpb.Entry) error {
	if len(e.Data) == 0 {
		return nil
	}
	if e.EntryType == eraftpb.EntryType_EntryConfChange {
		return verifyConfChange(e.Data)
	}
	return verifyCommand(e.Data)
}

func verifyCommand(all []byte) error {
	for data := all; len(data) > 0; {
		tag, field, rest, err := nextField(data)
		if err != nil {
			return err
		}
		if tag == tagChecksum {
			return checkSum(all, len(all)-len(data), field)
		}
		data = rest
	}
	_, err := DecodeEntry(all) // a bit of the checksum's own tag may have flipped
	return err
}

// verifyConfChange checks the command in a conf change, and that the change is what the command says.
func verifyConfChange(data []byte) error {
	var cc eraftpb.ConfChange
	if err := cc.Unmarshal(data); err != nil {
		return fmt.Errorf("%w: conf change: %w", errPayload, err)
	}
	if len(cc.Context) == 0 {
		return nil
	}
	if err := verifyCommand(cc.Context); err != nil {
		return err
	}
	var cmd raft_cmdpb.RaftCmdRequest
	if err := cmd.Unmarshal(cc.Context); err != nil {
		return fmt.Errorf("%w: conf change: %w", errPayload, err)
	}
	if req := cmd.GetAdminRequest().GetChangePeer(); req.GetPeer().GetId() != cc.NodeId || req.GetChangeType() != cc.ChangeType {
		return fmt.Errorf("conf change of peer %d carries one of peer %d: %w", cc.NodeId, req.GetPeer().GetId(), ErrCorrupt)
	}
	return nil
}
