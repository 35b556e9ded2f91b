package server

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/tinykv/tinykv/pkg/durable"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server/core"
)

// Followers keep a live copy of the region map, so that a new leader routes from its first moment
// on. The leader sends everything once and then what changed; there is no history index, because
// epochs make every record safe to apply at any time and in any order. The same records, framed in
// the same way, make the snapshot file that serves after a restart of all members.
//
// A frame is: length (4 bytes, big-endian), CRC-32C of the payload (4 bytes, big-endian), payload
// (a marshalled schedulerpb.RegionHeartbeatRequest). An empty payload is a sign of life. The file
// begins with snapshotMagic. Part of the on-disk format; do not change.
const (
	syncPath         = "/internal/regions"
	syncPause        = 200 * time.Millisecond
	syncAlive        = time.Second
	snapshotName     = "regions.snapshot"
	snapshotMagic    = "TKVREGS1"
	snapshotInterval = 10 * time.Minute
	maxFrame         = 1 << 24
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errBadFrame = errors.New("server: damaged region record")

func writeFrame(w io.Writer, payload []byte) error {
	var head [8]byte
	binary.BigEndian.PutUint32(head[:4], uint32(len(payload)))
	binary.BigEndian.PutUint32(head[4:], crc32.Checksum(payload, castagnoli))
	if _, err := w.Write(head[:]); err != nil {
		return err
	}
	_, err := w.Write(payload)
	return err
}

func readFrame(r io.Reader) ([]byte, error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:4])
	if n > maxFrame {
		return nil, errBadFrame
	}
	payload := make([]byte, n)
	if _, err := io.ReadFull(r, payload); err != nil {
		return nil, err
	}
	if crc32.Checksum(payload, castagnoli) != binary.BigEndian.Uint32(head[4:]) {
		return nil, errBadFrame
	}
	return payload, nil
}

func encodeRegion(r *core.RegionInfo) ([]byte, error) {
	f := r.Flow()
	hb := schedulerpb.RegionHeartbeatRequest{
		Region: r.Meta(), Leader: r.LeaderProto(), Term: r.Term(),
		ApproximateSize: uint64(r.Size()) << 20,
		ApproximateKeys: uint64(r.Keys()), PendingPeers: r.PendingProto(), DownPeers: r.DownProto(),
		BytesWritten: f.BytesWritten, BytesRead: f.BytesRead,
	}
	return hb.Marshal()
}

// applyRecord installs a record of another member or of the file, by the same epoch rules as a
// heartbeat. What it says is not confirmed.
func (c *RaftCluster) applyRecord(payload []byte, from core.Source) error {
	hb := &schedulerpb.RegionHeartbeatRequest{}
	if err := hb.Unmarshal(payload); err != nil {
		return fmt.Errorf("%w: %w", errBadFrame, err)
	}
	r := core.RegionFromHeartbeat(hb).Clone(core.WithSource(from))
	if old := c.core.Region(r.ID()); old != nil && old.SameAs(r) {
		return nil
	}
	if _, err := c.core.PutRegion(r); err != nil && !errors.Is(err, core.ErrStale) {
		return err
	}
	return nil
}

// changeFeed sends every subscriber the regions that changed. A region that changes often is sent
// once per pause.
type changeFeed struct {
	mu   sync.Mutex
	subs map[*subscriber]struct{}
}

type subscriber struct{ dirty map[uint64]struct{} }

func (f *changeFeed) changed(r *core.RegionInfo) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s := range f.subs {
		s.dirty[r.ID()] = struct{}{}
	}
}

func (f *changeFeed) subscribe() *subscriber {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := &subscriber{dirty: map[uint64]struct{}{}}
	if f.subs == nil {
		f.subs = map[*subscriber]struct{}{}
	}
	f.subs[s] = struct{}{}
	return s
}

func (f *changeFeed) unsubscribe(s *subscriber) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.subs, s)
}

func (f *changeFeed) take(s *subscriber) map[uint64]struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	dirty := s.dirty
	s.dirty = map[uint64]struct{}{}
	return dirty
}

// clusterHeader carries the cluster id of a request between members.
const clusterHeader = "Tinykv-Cluster-Id"

// signInternal marks a request between members: it names the cluster and has the token, if one is
// set.
func (s *Server) signInternal(r *http.Request) {
	r.Header.Set(clusterHeader, utoa(s.clusterID))
	if s.cfg.API.Token != "" {
		r.Header.Set("Authorization", "Bearer "+s.cfg.API.Token)
	}
}

// internal serves requests of members of this cluster only.
func (s *Server) internal(next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(clusterHeader) != utoa(s.clusterID) {
			writeError(w,
				&apiError{
					Code: "wrong-cluster", Message: "this is for members of the cluster",
					status: http.StatusForbidden,
				})
			return
		}
		if f := s.guard.CheckToken(r); f != nil {
			s.guard.Refuse(w, f)
			return
		}
		next(w, r)
	})
}

// serveRegions is the leader's side: all regions in batches, then changes until either side ends.
func (s *Server) serveRegions(w http.ResponseWriter, r *http.Request) {
	ctx := s.leaderContext()
	if ctx == nil || !s.IsLeader() {
		writeError(w, errNotLeader)
		return
	}
	sub := s.feed.subscribe() // before the dump, so that nothing falls between the two
	defer s.feed.unsubscribe(sub)
	out := bufio.NewWriterSize(w, 64<<10)
	flush := http.NewResponseController(w)
	if err := s.dumpRegions(out); err != nil {
		return
	}
	ticker := time.NewTicker(syncPause)
	defer ticker.Stop()
	lastFrame := time.Now()
	for {
		if out.Flush() != nil || flush.Flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		dirty := s.feed.take(sub)
		for id := range dirty {
			reg := s.cluster.Core().Region(id)
			if reg == nil {
				continue // displaced; the record that displaced it is in the feed too
			}
			if payload, err := encodeRegion(reg); err != nil || writeFrame(out, payload) != nil {
				return
			}
		}
		if len(dirty) > 0 {
			lastFrame = time.Now()
		} else if time.Since(lastFrame) > syncAlive {
			lastFrame = time.Now()
			if writeFrame(out, nil) != nil {
				return
			}
		}
	}
}

func (s *Server) dumpRegions(w io.Writer) error {
	const batch = 1000
	var start []byte
	for {
		list := s.cluster.Core().ScanRegions(start, nil, batch)
		for _, reg := range list {
			payload, err := encodeRegion(reg)
			if err != nil {
				return err
			}
			if err := writeFrame(w, payload); err != nil {
				return err
			}
		}
		if len(list) < batch {
			return nil
		}
		if start = list[len(list)-1].EndKey(); len(start) == 0 {
			return nil
		}
	}
}

// follow is a follower's side: it stays connected to the leader until ctx ends, and lets read have
// what it says at path. read calls alive with each frame.
func (s *Server) follow(
	ctx context.Context, path string, read func(body io.Reader, alive func()) error,
) {
	client := &http.Client{Transport: s.transport}
	for ctx.Err() == nil {
		leader, changed := s.elector.Leader()
		if leader != nil && leader.MemberId != s.self.MemberId && len(leader.ClientUrls) > 0 {
			streamCtx, cancel := context.WithCancel(ctx)
			go func() { // ends with the stream
				select {
				case <-changed:
					cancel()
				case <-streamCtx.Done():
				}
			}()
			if err := s.readFrom(streamCtx, client, leader.ClientUrls[0]+path, read); err != nil &&
				ctx.Err() == nil {
				s.logger.Debug("stream of the leader ended", zap.String("path", path),
					zap.Error(err))
			}
			cancel()
			sleep(ctx, syncPause)
			continue
		}
		select {
		case <-ctx.Done():
		case <-changed:
		}
	}
}

func (s *Server) readFrom(
	ctx context.Context, client *http.Client, url string, read func(io.Reader, func()) error,
) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	s.signInternal(req)
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("leader answers %s", resp.Status)
	}
	silence := time.AfterFunc(5*syncAlive, cancel)
	defer silence.Stop()
	return read(resp.Body, func() { silence.Reset(5 * syncAlive) })
}

func (s *Server) readRegions(body io.Reader, alive func()) error {
	in := bufio.NewReaderSize(body, 64<<10)
	for {
		payload, err := readFrame(in)
		if err != nil {
			return err
		}
		alive()
		if len(payload) == 0 || s.IsLeader() {
			continue
		}
		if err := s.cluster.applyRecord(payload, core.SourceSync); err != nil {
			return err
		}
	}
}

// saveSnapshot writes the region map next to etcd's data.
func (s *Server) saveSnapshot() error {
	path := filepath.Join(s.cfg.DataDir, snapshotName)
	if s.cluster.Core().RegionCount() == 0 {
		return nil
	}
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("region snapshot: %w", err)
	}
	w := bufio.NewWriterSize(f, 256<<10)
	if _, err = w.WriteString(snapshotMagic); err == nil {
		err = s.dumpRegions(w)
	}
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = durable.Rename(tmp, path)
	}
	if err != nil {
		return fmt.Errorf("region snapshot: %w", err)
	}
	return nil
}

// loadSnapshot reads the file if there is one. It only serves routing until heartbeats come: a
// damaged one is as good as its undamaged beginning.
func (s *Server) loadSnapshot() {
	f, err := os.Open(filepath.Join(s.cfg.DataDir, snapshotName))
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	in := bufio.NewReaderSize(f, 256<<10)
	magic := make([]byte, len(snapshotMagic))
	if _, err := io.ReadFull(in, magic); err != nil || string(magic) != snapshotMagic {
		s.logger.Warn("region snapshot ignored: not of this format")
		return
	}
	for {
		payload, err := readFrame(in)
		if err == nil {
			err = s.cluster.applyRecord(payload, core.SourceFile)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			s.logger.Warn("region snapshot is damaged; the rest is ignored", zap.Error(err))
			break
		}
	}
	s.logger.Info("loaded region snapshot", zap.Int("regions", s.cluster.Core().RegionCount()))
}

// keepSnapshots saves the map every now and then until ctx ends, and once more then.
func (s *Server) keepSnapshots(ctx context.Context) {
	ticker := time.NewTicker(snapshotInterval)
	defer ticker.Stop()
	for done := false; !done; {
		select {
		case <-ctx.Done():
			done = true
		case <-ticker.C:
		}
		if err := s.saveSnapshot(); err != nil {
			s.logger.Warn("saving the region snapshot failed", zap.Error(err))
		}
	}
}
