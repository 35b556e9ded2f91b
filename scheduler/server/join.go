package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/tinykv/tinykv/scheduler/server/config"
)

// joinCluster adds this member to a running cluster as a learner and fills the etcd configuration
// with what the cluster says. The leader promotes it when it has caught up.
func joinCluster(ctx context.Context, cfg *config.Config, ec *embed.Config, logger *zap.Logger) error {
	secure, err := memberTLS(cfg.Security)
	if err != nil {
		return err
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: strings.Split(cfg.Join, ","), DialTimeout: 3 * time.Second, Logger: quietEtcd(logger), TLS: secure,
	})
	if err != nil {
		return fmt.Errorf("join %s: %w", cfg.Join, err)
	}
	defer func() { _ = client.Close() }()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	list, err := client.MemberList(ctx)
	if err != nil {
		return fmt.Errorf("join %s: cannot list members: %w", cfg.Join, err)
	}
	for _, m := range list.Members {
		if m.Name == cfg.Name {
			return fmt.Errorf("join %s: a member named %q exists already; remove it first or choose another --name", cfg.Join, cfg.Name)
		}
	}
	peerURLs := strings.Split(cfg.AdvertisePeerUrls, ",")
	members, self := list.Members, uint64(0)
	for _, m := range members {
		if m.Name == "" && samePeers(m.PeerURLs, peerURLs) {
			self = m.ID // added by an earlier attempt that ended before etcd was started
		}
	}
	if self == 0 {
		added, err := client.MemberAddAsLearner(ctx, peerURLs)
		if err != nil {
			return fmt.Errorf("join %s: %w", cfg.Join, err)
		}
		members, self = added.Members, added.Member.ID
	}
	var parts []string
	for _, m := range members {
		name := m.Name
		if m.ID == self {
			name = cfg.Name
		}
		if name == "" {
			return errors.New("join: another member was added but has not started; start or remove it first")
		}
		for _, u := range m.PeerURLs {
			parts = append(parts, name+"="+u)
		}
	}
	ec.InitialCluster, ec.ClusterState = strings.Join(parts, ","), "existing"
	return nil
}

// samePeers compares lists of URLs without regard to their order.
func samePeers(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}
