package raftstore

import (
	"context"

	"github.com/tinykv/tinykv/kv/raftstore/message"
	"github.com/tinykv/tinykv/kv/raftstore/regions"
	"github.com/tinykv/tinykv/kv/regionerr"
	"github.com/tinykv/tinykv/proto/pkg/raft_cmdpb"
)

// Admin commands come from the placement service, from people and from this store itself. All pass
// onAdmin, which checks the parts of the epoch that the command depends on; what follows is in the
// file of the command: split.go, confchange.go, transfer.go, loggc.go, compare.go.

// Admin queues an admin command; its callback is answered exactly once.
func (s *Store) Admin(a *message.Admin) {
	err := s.ready()
	if err == nil {
		err = s.router.send(a.Header.RegionID, a)
	}
	if err != nil {
		a.Callback.Fail(err)
	}
}

// AdminCommand runs an admin command on this store's peer of a region and waits: for tools and
// tests.
func (s *Store) AdminCommand(
	ctx context.Context, regionID uint64, req *raft_cmdpb.AdminRequest,
) (message.Result, error) {
	box := s.router.get(regionID)
	if box == nil {
		return message.Result{}, &regionerr.RegionNotFoundError{RegionID: regionID}
	}
	h := box.handle.Load()
	if h == nil {
		return message.Result{}, &regionerr.RegionNotFoundError{RegionID: regionID}
	}
	a := &message.Admin{
		Header:  message.Header{RegionID: regionID, Peer: h.peer, Epoch: h.region.RegionEpoch},
		Request: req, Callback: message.NewCallback(),
	}
	s.Admin(a)
	res, err := a.Callback.Wait(ctx)
	if err == nil {
		err = res.Err
	}
	return res, err
}

// onAdmin checks and carries out or proposes an admin command.
func (p *peer) onAdmin(a *message.Admin) {
	p.flushWrites() // earlier writes keep their place
	version, confVer := regions.EpochParts(a.Request)
	err := p.checkHeader(a.Header, version, confVer, a.Deadline)
	if err == nil {
		switch a.Request.GetCmdType() {
		case raft_cmdpb.AdminCmdType_TransferLeader:
			err = p.transfer.command(a)
		case raft_cmdpb.AdminCmdType_ChangePeer:
			err = p.proposeChangePeer(a)
		case raft_cmdpb.AdminCmdType_Split:
			err = p.split.propose(a)
		case raft_cmdpb.AdminCmdType_PrepareMerge:
			err = p.merge.propose(a)
		case raft_cmdpb.AdminCmdType_CompactLog, raft_cmdpb.AdminCmdType_ComputeHash:
			p.proposeAdmin(a)
		default:
			err = regionerr.Invalidf("unknown admin command %v", a.Request.GetCmdType())
		}
	}
	if err != nil {
		a.Callback.Fail(err)
	}
}

func (p *peer) proposeAdmin(a *message.Admin) bool {
	req := raft_cmdpb.RaftCmdRequest{
		Header: &raft_cmdpb.RaftRequestHeader{
			RegionId: p.regionID, RegionEpoch: p.region().RegionEpoch,
		},
		AdminRequest: a.Request,
	}
	data, err := req.Marshal()
	if err != nil {
		a.Callback.Fail(regionerr.Invalidf("marshal admin command: %v", err))
		return false
	}
	data = message.AppendChecksum(data)
	return p.propose(0, []*message.Callback{a.Callback}, func() error { return p.rn.Propose(data) })
}
