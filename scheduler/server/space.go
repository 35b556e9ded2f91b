package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Etcd ends its process, with a stack and no word of what to do, when its disk is full. So it must
// not come to that: below a reserve a lone member raises etcd's own alarm NOSPACE, as a full quota
// does, and goes on to answer reads and to say why it does not lead; the alarm ends when there is
// space. A member that has others ends with one line, and they go on: the alarm would stop all of
// them.

const (
	// spaceReserve is what etcd may take before it stops: the next file of its log, and its tables.
	// On a small disk it is at most a quarter.
	spaceReserve = 128 << 20
	// spaceInterval is how often the disk is measured. The service writes a few KB a second.
	spaceInterval = time.Second
	spaceTimeout  = 5 * time.Second
)

// diskSpace measures the disk under a directory. Short tells that less than the reserve is free,
// ample that an eighth more is.
func diskSpace(dir string) (free uint64, short, ample bool, err error) {
	var st unix.Statfs_t
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Statfs(dir, &st)
	}
	if err != nil {
		return 0, false, false, fmt.Errorf("data-dir: measure the disk: %w", err)
	}
	block := uint64(st.Bsize)
	free = st.Bavail * block
	reserve := min(spaceReserve, st.Blocks*block/4)
	return free, free < reserve, free >= reserve+reserve/8, nil
}

// checkSpace raises or ends the alarm, or returns the error with which this member must end.
func (n *node) checkSpace(ctx context.Context, logger *zap.Logger) error {
	free, short, ample, err := diskSpace(n.cfg.DataDir)
	if err != nil {
		return err
	}
	alarmed := n.noSpace()
	switch {
	case short && !alarmed:
		if len(n.etcd.Server.Cluster().Members()) > 1 {
			return fmt.Errorf(
				"data-dir: the disk under %s is full: %d bytes are free; make room and start this member again",
				n.cfg.DataDir, free)
		}
		logger.Error("the disk is full: this member stops leading until there is room",
			zap.String("data-dir", n.cfg.DataDir), zap.Uint64("free-bytes", free))
		return n.setNoSpace(ctx, etcdserverpb.AlarmRequest_ACTIVATE)
	case ample && alarmed && !n.overQuota():
		if err := n.setNoSpace(ctx, etcdserverpb.AlarmRequest_DEACTIVATE); err != nil {
			return err
		}
		logger.Info("the disk has room again", zap.Uint64("free-bytes", free))
	}
	return nil
}

// noSpace tells whether this member's alarm NOSPACE is on.
func (n *node) noSpace() bool {
	for _, a := range n.etcd.Server.Alarms() {
		if a.MemberID == uint64(n.etcd.Server.MemberID()) &&
			a.Alarm == etcdserverpb.AlarmType_NOSPACE {
			return true
		}
	}
	return false
}

func (n *node) setNoSpace(ctx context.Context, action etcdserverpb.AlarmRequest_AlarmAction) error {
	ctx, cancel := context.WithTimeout(ctx, spaceTimeout)
	defer cancel()
	_, err := n.etcd.Server.Alarm(ctx, &etcdserverpb.AlarmRequest{
		MemberID: uint64(n.etcd.Server.MemberID()), Action: action,
		Alarm: etcdserverpb.AlarmType_NOSPACE,
	})
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("etcd's alarm NOSPACE: %w", err)
	}
	return nil // without a quorum: tried again with the next measurement
}

func (n *node) overQuota() bool {
	return n.cfg.QuotaBackendBytes > 0 && n.etcd.Server.Backend().Size() >= n.cfg.QuotaBackendBytes
}
