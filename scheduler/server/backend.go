package server

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
	"github.com/tinykv/tinykv/scheduler/server/config"
	"github.com/tinykv/tinykv/scheduler/server/storage"
)

// backend is where the hard state lives and how this member is reached: embedded etcd (node), or an
// etcd cluster run by someone else, or memory (external).
type backend interface {
	store() storage.Storage
	// ready is called once the cluster id is known.
	ready(ctx context.Context, keys storage.Keys) error
	self() *schedulerpb.Member
	members() []memberInfo
	// quorumLeader is the id of the etcd leader, 0 if that is somebody else's business.
	quorumLeader() uint64
	// isVoter is false while this member only learns.
	isVoter() bool
	// handOver gives the quorum leadership away before a stop.
	handOver()
	// add makes room for a member with these peer URLs and returns its id and all members.
	add(ctx context.Context, name string, peerURLs []string) (uint64, []memberInfo, error)
	remove(ctx context.Context, id uint64) error
	promote(ctx context.Context, id uint64) error
	// failed delivers why the backend cannot go on.
	failed() <-chan error
	directory() *dataDir
	// alarms say what keeps the backend from writing, by member.
	alarms() []alarm
	// reclaim compacts and defragments this member's storage and ends its alarms if there is room
	// again.
	reclaim(ctx context.Context) error
	close()
}

type memberInfo struct {
	*schedulerpb.Member
	learner bool
}

// errMembership means that members of this backend come and go by themselves.
var errMembership = errors.New(
	"server: with this storage backend members come and go by themselves")

// external keeps the hard state elsewhere.
//
// Members register under a key of their own when they start and take it away when they stop; which
// of them leads is decided by the elector, as always.
type external struct {
	cfg     *config.Config
	dir     *dataDir
	storage storage.Storage
	client  *clientv3.Client // nil with memory
	fail    chan error
	me      *schedulerpb.Member
	keys    storage.Keys

	mu struct {
		sync.Mutex
		known []memberInfo
		at    time.Time
	}
}

func startExternal(
	ctx context.Context, cfg *config.Config, logger *zap.Logger, addr string,
) (_ *external, err error) {
	e := &external{cfg: cfg, fail: make(chan error, 1)}
	if e.dir, err = openDataDir(cfg.DataDir, cfg.Name); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	if err := e.openStorage(ctx, logger); err != nil {
		return nil, err
	}
	id := fnv.New64a()
	_, _ = id.Write([]byte(cfg.Name))
	e.me = &schedulerpb.Member{
		Name: cfg.Name, MemberId: id.Sum64(), ClientUrls: advertised(cfg, addr),
	}
	return e, nil
}

func (e *external) openStorage(ctx context.Context, logger *zap.Logger) (err error) {
	if e.cfg.Storage.Backend == "memory" {
		e.storage = storage.NewMemory()
		return nil
	}
	e.client, err = clientv3.New(clientv3.Config{
		Endpoints: e.cfg.Storage.Endpoints, DialTimeout: 3 * time.Second, Logger: quietEtcd(logger),
		DialKeepAliveTime: 5 * time.Second, DialKeepAliveTimeout: 2 * time.Second,
	})
	if err != nil {
		return fmt.Errorf("storage.endpoints: %w", err)
	}
	e.storage = storage.NewEtcd(e.client)
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := e.storage.Get(ctx, storage.ClusterIDKey); err != nil {
		return fmt.Errorf("storage.endpoints: etcd at %s does not answer: %w",
			strings.Join(e.cfg.Storage.Endpoints, ","), err)
	}
	return nil
}

func (e *external) store() storage.Storage    { return e.storage }
func (e *external) self() *schedulerpb.Member { return e.me }
func (e *external) quorumLeader() uint64      { return 0 }
func (e *external) isVoter() bool             { return true }
func (e *external) handOver()                 {}
func (e *external) failed() <-chan error      { return e.fail }
func (e *external) alarms() []alarm           { return nil }

func (e *external) reclaim(context.Context) error {
	return errors.New("server: this storage is kept by somebody else, who has to make room in it")
}
func (e *external) directory() *dataDir { return e.dir }

func (e *external) ready(ctx context.Context, keys storage.Keys) error {
	e.keys = keys
	value, err := e.me.Marshal()
	if err != nil {
		return err
	}
	key := keys.MemberInfo(e.me.MemberId)
	old, err := e.storage.Get(ctx, key)
	if err != nil {
		return err
	}
	_, err = e.storage.Txn(ctx, []storage.Cond{storage.RevisionIs(key, old.ModRevision)},
		[]storage.Op{storage.Put(key, value)})
	return err
}

// membersAge is for how long a list of members is good: a client that asks once must not get one
// from before another member has started.
const membersAge = 100 * time.Millisecond

// members reads the register, at most once each membersAge.
func (e *external) members() []memberInfo {
	e.mu.Lock()
	defer e.mu.Unlock()
	if time.Since(e.mu.at) < membersAge {
		return e.mu.known
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	kvs, err := e.storage.Range(ctx, e.keys.Members())
	if err != nil {
		return e.mu.known // as last seen
	}
	var list []memberInfo
	for _, kv := range kvs {
		m := &schedulerpb.Member{}
		if strings.HasSuffix(kv.Key, "/info") && m.Unmarshal(kv.Value) == nil {
			list = append(list, memberInfo{Member: m})
		}
	}
	e.mu.known, e.mu.at = list, time.Now()
	return list
}

func (e *external) add(context.Context, string, []string) (uint64, []memberInfo, error) {
	return 0, nil, errMembership
}
func (e *external) promote(context.Context, uint64) error { return errMembership }

// remove takes a member off the register, which one that was killed did not do itself. One that
// lives is back with its next start.
func (e *external) remove(ctx context.Context, id uint64) error {
	if _, err := e.storage.Txn(ctx, nil,
		[]storage.Op{storage.Delete(e.keys.MemberInfo(id))}); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mu.at = time.Time{}
	return nil
}

func (e *external) close() {
	if e.me != nil && e.keys != (storage.Keys{}) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_, _ = e.storage.Txn(ctx, nil,
			[]storage.Op{storage.Delete(e.keys.MemberInfo(e.me.MemberId))})
		cancel()
	}
	if e.client != nil {
		_ = e.client.Close()
	}
	e.dir.close()
}
