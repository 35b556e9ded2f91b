package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/etcdhttp"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"

	"github.com/tinykv/tinykv/pkg/durable"
	"github.com/tinykv/tinykv/proto/codec"
	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/peerdoor"
	"github.com/tinykv/tinykv/scheduler/server/storage"
)

// node is the embedded etcd member: it keeps the hard state. etcd listens nowhere: the door serves
// its peers, and this process reaches it by calls.
type node struct {
	cfg        *config.Config
	etcd       *embed.Etcd
	door       *peerdoor.Door
	client     *clientv3.Client
	dir        *dataDir
	clientAddr string
	fail       chan error
	done       chan struct{} // closed by close
	unwatch    context.CancelFunc
	wg         sync.WaitGroup
}

func startNode(ctx context.Context, cfg *config.Config, logger *zap.Logger,
	clientAddr string,
) (_ *node, err error) {
	dir, err := openDataDir(cfg.DataDir, cfg.Name)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			dir.close()
		}
	}()
	if err := probeListen(cfg); err != nil {
		return nil, err
	}
	if cfg.EvenMembers() {
		logger.Warn("an even number of members tolerates no more failures than one member less",
			zap.String("initial-cluster", cfg.InitialCluster))
	}
	ec, err := etcdConfig(cfg, logger)
	if err != nil {
		return nil, err
	}
	if err := join(ctx, cfg, dir, ec, logger); err != nil {
		return nil, err
	}
	door, err := openPeerDoor(ctx, cfg, ec, logger)
	if err != nil {
		return nil, explainStart(err, cfg)
	}
	e, err := startEtcd(ctx, cfg, ec, door)
	if err != nil {
		door.Close()
		return nil, err
	}
	n := &node{
		cfg: cfg, etcd: e, door: door, dir: dir, clientAddr: clientAddr, fail: make(chan error, 1),
		done: make(chan struct{}),
	}
	n.client = v3client.New(e.Server)
	var watching context.Context
	watching, n.unwatch = context.WithCancel(context.Background())
	n.wg.Add(1)
	go n.watch(watching, logger) //nolint:contextcheck // ends with close
	return n, nil
}

// startEtcd starts etcd, has the door serve its peers, and waits until it is ready.
func startEtcd(
	ctx context.Context, cfg *config.Config, ec *embed.Config, door *peerdoor.Door,
) (_ *embed.Etcd, err error) {
	e, err := embed.StartEtcd(ec)
	if err != nil {
		return nil, explainStart(err, cfg)
	}
	defer func() {
		if err != nil {
			e.Close()
		}
	}()
	// Before the first answer: etcd syncs its files, and of its directories only some.
	if err := syncEtcdDirs(cfg.DataDir); err != nil {
		return nil, fmt.Errorf("data-dir: %w", err)
	}
	door.Serve(etcdhttp.NewPeerHandler(e.GetLogger(), e.Server), peerNames(cfg, e))
	select {
	case <-e.Server.ReadyNotify():
		return e, nil
	case err := <-e.Err():
		return nil, explainStart(err, cfg)
	case <-e.Server.StopNotify():
		return nil,
			errors.New("etcd stopped while starting: this member was removed from the cluster")
	case <-ctx.Done():
		return nil,
			fmt.Errorf("member %s did not find a majority of %q: %w", cfg.Name, cfg.InitialCluster,
				ctx.Err())
	}
}

// openPeerDoor has a door take the peer port's place: etcd itself listens nowhere.
func openPeerDoor(
	ctx context.Context, cfg *config.Config, ec *embed.Config, logger *zap.Logger,
) (*peerdoor.Door, error) {
	id, err := memberIdentity(cfg.Security)
	if err != nil {
		return nil, err
	}
	door, err := peerdoor.Open(ctx, peerdoor.Options{
		URLs: ec.ListenPeerUrls, Identity: id, Logger: logger,
	})
	if err != nil {
		return nil, fmt.Errorf("peer-urls: %w", err)
	}
	ec.ListenPeerUrls = nil
	return door, nil
}

// peerNames are the names under which members ask each other: those of the configuration, and those
// that the cluster has. The latter differ where a member was started again with other URLs.
func peerNames(cfg *config.Config, e *embed.Etcd) func() []string {
	urls := []string{cfg.PeerUrls, cfg.AdvertisePeerUrls}
	for member := range strings.SplitSeq(cfg.InitialCluster, ",") {
		_, u, _ := strings.Cut(member, "=")
		urls = append(urls, u)
	}
	return func() []string {
		all := slices.Clone(urls)
		for _, m := range e.Server.Cluster().Members() {
			all = append(all, m.PeerURLs...)
		}
		names := slices.Clone(cfg.API.AllowedHosts)
		for _, list := range all {
			parsed, _ := config.ParseURLs(list) // "" where a member has no URL
			for _, u := range parsed {
				names = append(names, u.Host)
			}
		}
		return names
	}
}

// syncEtcdDirs makes the names of etcd's files durable. Etcd leaves out the directories of its
// data, of the log's first file and of the tables.
func syncEtcdDirs(dataDir string) error {
	for _, dir := range []string{"member/snap", "member/wal", "member", "."} {
		if err := durable.SyncDir(filepath.Join(dataDir, dir)); err != nil {
			return err
		}
	}
	return nil
}

// snapSyncInterval is how often the directory of etcd's snapshot files is synced. Etcd removes a
// file of its log at the earliest when five more are full, which takes longer.
const snapSyncInterval = 10 * time.Second

// watch notices that etcd ended by itself, for example on a full or broken disk. Etcd does not sync
// the directory in which it makes a snapshot file, so watch does.
func (n *node) watch(ctx context.Context, logger *zap.Logger) {
	defer n.wg.Done()
	ticker := time.NewTicker(snapSyncInterval)
	defer ticker.Stop()
	space := time.NewTicker(spaceInterval)
	defer space.Stop()
	snap := filepath.Join(n.cfg.DataDir, "member", "snap")
	for {
		select {
		case <-n.done:
			return
		case err := <-n.etcd.Err():
			n.fail <- fmt.Errorf("etcd failed: %w", err)
			return
		case <-n.etcd.Server.StopNotify():
			select {
			case <-n.done:
			default:
				n.fail <- errors.New("etcd stopped: this member was removed or its disk failed")
			}
			return
		case <-space.C:
			if err := n.checkSpace(ctx, logger); err != nil {
				n.fail <- err
				return
			}
		case <-ticker.C:
			if err := durable.SyncDir(snap); err != nil {
				n.fail <- fmt.Errorf("data-dir: %w", err)
				return
			}
		}
	}
}

func (n *node) store() storage.Storage                    { return storage.NewEtcd(n.client) }
func (n *node) ready(context.Context, storage.Keys) error { return nil }
func (n *node) quorumLeader() uint64                      { return uint64(n.etcd.Server.Leader()) }
func (n *node) failed() <-chan error                      { return n.fail }
func (n *node) directory() *dataDir                       { return n.dir }

func (n *node) remove(ctx context.Context, id uint64) error {
	_, err := n.client.MemberRemove(ctx, id)
	return err
}

func (n *node) promote(ctx context.Context, id uint64) error {
	_, err := n.client.MemberPromote(ctx, id)
	return err
}

// alarms lists the alarms of all members: every member knows them.
func (n *node) alarms() []alarm {
	var out []alarm
	for _, a := range n.etcd.Server.Alarms() {
		out = append(out, alarm{Member: a.MemberID, Kind: a.Alarm.String()})
	}
	return out
}

// reclaim gives up all old revisions, returns the room to the disk and, if less than the quota is
// in use then, ends this member's alarm of NOSPACE.
func (n *node) reclaim(ctx context.Context) error {
	_, err := n.client.Compact(ctx, n.etcd.Server.KV().Rev(), clientv3.WithCompactPhysical())
	if err != nil && !hasCode(err, codes.OutOfRange) { // which says that it was done before
		return fmt.Errorf("compact etcd: %w", err)
	}
	if err := n.etcd.Server.Backend().Defrag(); err != nil {
		return fmt.Errorf("defragment etcd: %w", err)
	}
	if size := n.etcd.Server.Backend().Size(); n.cfg.QuotaBackendBytes > 0 &&
		size >= n.cfg.QuotaBackendBytes {
		return fmt.Errorf(
			"etcd's data of member %s still takes %d bytes of %d: raise quota-backend-bytes and start it again",
			n.cfg.Name, size, n.cfg.QuotaBackendBytes)
	}
	for _, a := range n.etcd.Server.Alarms() {
		if a.MemberID != uint64(n.etcd.Server.MemberID()) || a.Alarm.String() != "NOSPACE" {
			continue
		}
		if _, err := n.client.AlarmDisarm(ctx, (*clientv3.AlarmMember)(a)); err != nil {
			return fmt.Errorf("end the alarm: %w", err)
		}
	}
	return nil
}

// members lists the members as etcd knows them.
func (n *node) members() []memberInfo {
	var out []memberInfo
	me := n.self()
	for _, m := range n.etcd.Server.Cluster().Members() {
		pm := memberOf(uint64(m.ID), m.Name, m.PeerURLs, m.ClientURLs)
		if pm.MemberId == me.MemberId {
			pm = me
		}
		out = append(out, memberInfo{pm, m.IsLearner})
	}
	return out
}

// handOver gives the etcd leadership to another member, if this one has it and there is another.
// etcd's own waiting looks for the success once a tick only; clients wait as long, so it is looked
// for often.
func (n *node) handOver() {
	if n.etcd.Server.Leader() != n.etcd.Server.MemberID() {
		return
	}
	ended := make(chan struct{})
	n.wg.Add(1)
	go func() { // ends after a request timeout of etcd's at most; close waits
		defer n.wg.Done()
		defer close(ended)
		_ = n.etcd.Server.TryTransferLeadershipOnShutdown()
	}()
	poll := time.NewTicker(2 * time.Millisecond)
	defer poll.Stop()
	for {
		select {
		case <-ended:
			return
		case <-poll.C:
			if l := n.etcd.Server.Leader(); l != 0 && l != n.etcd.Server.MemberID() {
				return
			}
		}
	}
}

func (n *node) close() {
	close(n.done)
	n.unwatch()
	n.wg.Wait()
	_ = n.client.Close()
	n.etcd.Close()
	n.door.Close()
	n.dir.close()
}

// isVoter is false while this member only learns.
func (n *node) isVoter() bool { return !n.etcd.Server.IsLearner() }

// self describes this member. A port 0 in the configuration is replaced by the real one.
func (n *node) self() *schedulerpb.Member {
	m := &schedulerpb.Member{Name: n.cfg.Name, MemberId: uint64(n.etcd.Server.MemberID())}
	m.ClientUrls = advertised(n.cfg, n.clientAddr)
	m.PeerUrls = strings.Split(n.cfg.AdvertisePeerUrls, ",")
	return m
}

// advertised are the URLs told to clients. A port 0 is replaced by the real one.
func advertised(cfg *config.Config, addr string) []string {
	urls := strings.Split(cfg.AdvertiseClientUrls, ",")
	for i, u := range urls {
		if strings.HasSuffix(u, ":0") {
			scheme, _, _ := strings.Cut(u, "://")
			urls[i] = scheme + "://" + addr
		}
	}
	return urls
}

func etcdConfig(cfg *config.Config, logger *zap.Logger) (*embed.Config, error) {
	ec := embed.NewConfig()
	ec.Name, ec.Dir = cfg.Name, cfg.DataDir
	ec.WalDir = ""
	ec.TickMs = uint(cfg.TickInterval.D().Milliseconds())
	ec.ElectionMs = uint(cfg.ElectionInterval.D().Milliseconds())
	if cfg.Alone() {
		// etcd waits out a random part of an election timeout even when there is nobody to wait
		// for. (Making it campaign at once by a message is no way: that meets a log which it has
		// not worked off yet, and panics.)
		ec.TickMs, ec.ElectionMs = min(ec.TickMs, 70), min(ec.ElectionMs, 350)
	}
	// etcd's log is synced before anything is answered, so its tables may follow later than after
	// 100 ms: that would be a transaction with syncs of its own for every renewal of the
	// leadership. The limit of changes keeps the quota exact, which goes by the size of the tables.
	ec.BackendBatchInterval, ec.BackendBatchLimit = 5*time.Second, 64
	ec.QuotaBackendBytes = cfg.QuotaBackendBytes
	ec.AutoCompactionMode, ec.AutoCompactionRetention = cfg.AutoCompactionMode,
		cfg.AutoCompactionRetention
	ec.InitialCluster, ec.ClusterState = cfg.InitialCluster, cfg.InitialClusterState
	ec.InitialClusterToken = cfg.InitialClusterToken
	ec.ForceNewCluster = cfg.ForceNewCluster
	ec.UnsafeNoFsync = cfg.UnsafeNoFsync
	ec.EnableGRPCGateway = false
	ec.StrictReconfigCheck, ec.PreVote = true, true
	ec.LogLevel = "warn"
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(quietEtcd(logger))
	ec.ListenClientUrls, ec.ListenClientHttpUrls = nil, nil // see front
	for _, u := range []struct {
		dst  *[]url.URL
		urls string
	}{
		{&ec.AdvertiseClientUrls, cfg.AdvertiseClientUrls},
		{&ec.ListenPeerUrls, cfg.PeerUrls},
		{&ec.AdvertisePeerUrls, cfg.AdvertisePeerUrls},
	} {
		parsed, err := config.ParseURLs(u.urls)
		if err != nil {
			return nil, err
		}
		*u.dst = parsed
	}
	if sec := cfg.Security; sec.CertPath != "" {
		tls := transport.TLSInfo{
			CertFile: sec.CertPath, KeyFile: sec.KeyPath, TrustedCAFile: sec.CACertPath,
			ClientCertAuth: sec.CACertPath != "",
		}
		ec.PeerTLSInfo = tls
	}
	return ec, nil
}

// etcdNoise are lines of etcd that say nothing here: sharing one port is the design, a closed
// listener at the end is not an error, and a new member's tables are written seconds after etcd
// first looks for their version, which only matters to a downgrade of etcd.
var etcdNoise = []string{
	"Running http and grpc server on single port",
	"simple token is not cryptographically signed",
	"Failed to detect schema version",
	"failed to update storage version",
}

// quietEtcd names etcd's lines and keeps only warnings and errors: a start would print a hundred.
func quietEtcd(logger *zap.Logger) *zap.Logger {
	return logger.Named("etcd").WithOptions(zap.IncreaseLevel(zapcore.WarnLevel),
		zap.WrapCore(func(c zapcore.Core) zapcore.Core { return noiseFilter{c} }))
}

type noiseFilter struct{ zapcore.Core }

func (f noiseFilter) With(fields []zapcore.Field) zapcore.Core {
	return noiseFilter{f.Core.With(fields)}
}

func (f noiseFilter) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	for _, n := range etcdNoise {
		if strings.HasPrefix(e.Message, n) {
			return ce
		}
	}
	return f.Core.Check(e, ce)
}

// probeListen finds an address in use before etcd does, so that one line can name it.
func probeListen(cfg *config.Config) error {
	for _, group := range []struct{ key, urls string }{
		{"peer-urls", cfg.PeerUrls},
	} {
		urls, err := config.ParseURLs(group.urls)
		if err != nil {
			return err
		}
		for _, u := range urls {
			if strings.HasPrefix(u.Scheme, "unix") || u.Port() == "0" {
				continue
			}
			l, err := net.Listen("tcp", u.Host) //nolint:noctx // closed at once
			if errors.Is(err, syscall.EADDRINUSE) {
				return fmt.Errorf(
					"%s: address %s is already in use; stop the other process or choose another with --%s",
					group.key, u.Host, group.key)
			}
			if err != nil {
				return fmt.Errorf("%s: cannot listen on %s: %w", group.key, u.Host, err)
			}
			_ = l.Close()
		}
	}
	return nil
}

func explainStart(err error, cfg *config.Config) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("address in use: %w", err)
	}
	return fmt.Errorf("start etcd member %s in %s: %w", cfg.Name, cfg.DataDir, err)
}

func (s *Server) grpcOptions() []grpc.ServerOption {
	return append(transportOptions(),
		grpc.UnknownServiceHandler(refuseUnknown),
		grpc.ChainUnaryInterceptor(roleCheck{s.guard}.unary, s.forward.unary),
		grpc.ChainStreamInterceptor(roleCheck{s.guard}.stream))
}

const (
	// maxCalls bounds the calls of one connection that are under way. A follower passes all that it
	// gets on over one connection.
	maxCalls = 4096
	// maxCallHeaders bounds the headers of a call, in bytes.
	maxCallHeaders = 64 << 10
	// maxMessage bounds a message of a call, in bytes.
	maxMessage = 16 << 20
)

// transportOptions bound what connections hold. Clients and stores connect again by themselves.
func transportOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		// The codec serves gogo messages and leaves etcd's own to grpc's.
		codec.ServerOption(),
		grpc.Creds(shaken{}),
		grpc.ConnectionTimeout(sniffTimeout), // for the greeting
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle: 10 * time.Minute, // without a call
			Time:              30 * time.Second, Timeout: 10 * time.Second,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime: 2 * time.Second, PermitWithoutStream: true,
		}),
		// Of what arrived for a call and was not read. callroom counts on 64 KiB.
		grpc.InitialWindowSize(64 << 10),
		grpc.InitialConnWindowSize(8 << 20),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(maxCalls),
		grpc.MaxHeaderListSize(maxCallHeaders),
	}
}

func memberOf(id uint64, name string, peerURLs, clientURLs []string) *schedulerpb.Member {
	return &schedulerpb.Member{Name: name, MemberId: id, PeerUrls: peerURLs, ClientUrls: clientURLs}
}
