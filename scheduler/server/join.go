package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"

	"github.com/tinykv/tinykv/pkg/security"
	"github.com/tinykv/tinykv/scheduler/server/config"
)

const (
	// another member that joins at the same time has to be voter first
	joinTimeout = 2 * time.Minute
	joinPause   = 500 * time.Millisecond
)

// joinRequest asks for membership, joined is the answer.
type joinRequest struct {
	Name     string   `json:"name"`
	PeerURLs []string `json:"peer_urls"`
}

type joined struct {
	ID      uint64       `json:"id"`
	Members []joinedPeer `json:"members"`
}

type joinedPeer struct {
	ID       uint64   `json:"id"`
	Name     string   `json:"name"`
	PeerURLs []string `json:"peer_urls"`
}

// join has a running cluster add this member as a learner, if its configuration asks for it and it
// is not in one yet, and fills the etcd configuration with what the cluster says. The leader
// promotes it when it has caught up.
//
// The mark that this member joins is durable before the cluster is asked. Else the same directory,
// started once without the flag, would begin a second cluster while the first one counts on this
// member.
func join(
	ctx context.Context, cfg *config.Config, dir *dataDir, ec *embed.Config, logger *zap.Logger,
) error {
	if dir.hasMember() {
		return nil
	}
	if cfg.Join == "" {
		if dir.mark.Joins {
			return fmt.Errorf(
				"data-dir: %s is of a member that was started to join a cluster and has not got there; start it "+
					"with --join, or empty the directory to begin a new cluster", cfg.DataDir)
		}
		return nil
	}
	if err := dir.joins(); err != nil {
		return err
	}
	id, err := memberIdentity(cfg.Security)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: transportOf(id), Timeout: 2 * requestTimeout}
	within, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	var said string
	for {
		answer, err := askToJoin(within, client, cfg)
		if err == nil {
			return answer.fill(cfg.Name, ec)
		}
		var no *apiError
		if errors.As(err, &no) && !no.passes() {
			return fmt.Errorf("join %s: %s", cfg.Join, no.text())
		}
		if text := err.Error(); text != said {
			said = text
			logger.Info("waiting to join", zap.String("join", cfg.Join), zap.Error(err))
		}
		if !sleep(within, joinPause) {
			return fmt.Errorf("join %s: given up after %v: %w", cfg.Join, joinTimeout, err)
		}
	}
}

// askToJoin asks one after the other until one answers.
func askToJoin(ctx context.Context, client *http.Client, cfg *config.Config) (*joined, error) {
	body, err := json.Marshal(joinRequest{cfg.Name, strings.Split(cfg.AdvertisePeerUrls, ",")})
	if err != nil {
		return nil, err
	}
	var failure error
	for member := range strings.SplitSeq(cfg.Join, ",") {
		out := &joined{}
		if failure = postJoin(ctx, client, cfg, member, body, out); failure == nil {
			return out, nil
		}
		var no *apiError
		if errors.As(failure, &no) && !no.passes() {
			return nil, failure
		}
	}
	return nil, failure
}

func postJoin(
	ctx context.Context, client *http.Client, cfg *config.Config, member string, body []byte, out *joined,
) error {
	member = strings.TrimRight(strings.TrimSpace(member), "/")
	if !strings.Contains(member, "://") {
		member = "http://" + member
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, member+apiPrefix+"/members",
		bytes.NewReader(body))
	if err != nil {
		return badRequest("%q is not a URL", member)
	}
	req.Header.Set(security.ProofHeader, "1")
	if cfg.API.Token != "" {
		req.Header.Set("Authorization", "Bearer "+cfg.API.Token)
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusOK {
		return json.Unmarshal(data, out)
	}
	no := &apiError{status: resp.StatusCode}
	if json.Unmarshal(data, no) != nil || no.Code == "" {
		return badRequest("%s answers %s: it is not a placement service that can be joined", member,
			resp.Status)
	}
	return no
}

// passes tells whether the refusal is one that waiting may end.
func (e *apiError) passes() bool {
	return e.Code == codeChanging || e.status == http.StatusServiceUnavailable ||
		e.status == http.StatusBadGateway
}

func (e *apiError) text() string {
	if e.Detail == "" {
		return e.Message
	}
	return e.Message + "; " + e.Detail
}

// fill tells etcd who the members are.
func (j *joined) fill(name string, ec *embed.Config) error {
	var parts []string
	for _, m := range j.Members {
		if m.ID == j.ID {
			m.Name = name
		}
		if m.Name == "" || len(m.PeerURLs) == 0 {
			return errors.New("join: the cluster's answer names no member")
		}
		for _, u := range m.PeerURLs {
			parts = append(parts, m.Name+"="+u)
		}
	}
	ec.InitialCluster, ec.ClusterState = strings.Join(parts, ","), "existing"
	return nil
}

// codeChanging is the code of the answer to a member that is to join while another member does.
const codeChanging = "changing"

func changing(format string, args ...any) error {
	return &apiError{
		Code: codeChanging, Message: fmt.Sprintf(format, args...), status: http.StatusConflict,
	}
}

// add is the cluster's side of join. It has no effect twice: who asks again with the same URLs
// before it was ever started gets the same id.
func (n *node) add(
	ctx context.Context, name string, peerURLs []string,
) (uint64, []memberInfo, error) {
	list, err := n.client.MemberList(ctx)
	if err != nil {
		return 0, nil, fmt.Errorf("list members: %w", err)
	}
	var self uint64
	for _, m := range list.Members {
		switch {
		case m.Name == name:
			return 0, nil, &apiError{
				Code: "exists", Message: fmt.Sprintf("a member named %q exists already", name),
				Detail: "remove it first or choose another --name", status: http.StatusConflict,
			}
		case m.Name == "" && samePeers(m.PeerURLs, peerURLs):
			self = m.ID // added by an earlier attempt that ended before etcd was started
		case m.Name == "":
			return 0, nil,
				changing(
					"another member was added for %s and has not started; start it, or remove it by its id %d",
					strings.Join(m.PeerURLs, ","), m.ID)
		}
	}
	if self == 0 {
		added, err := n.client.MemberAddAsLearner(ctx, peerURLs)
		if err != nil {
			return 0, nil, explainAdd(err)
		}
		self = added.Member.ID
		list = &clientv3.MemberListResponse{Members: added.Members}
	}
	var out []memberInfo
	for _, m := range list.Members {
		out = append(out,
			memberInfo{
				Member: memberOf(m.ID, m.Name, m.PeerURLs, m.ClientURLs), learner: m.IsLearner,
			})
	}
	return self, out, nil
}

// explainAdd tells refusals that pass (another member is learning, the quorum is not healthy yet)
// from others.
func explainAdd(err error) error {
	if hasCode(err, codes.FailedPrecondition) && strings.Contains(err.Error(), "exist") {
		return &apiError{
			Code: "exists", Message: err.Error(), Detail: "another member has these peer URLs",
			status: http.StatusConflict,
		}
	}
	if hasCode(err, codes.FailedPrecondition) || hasCode(err, codes.Unavailable) {
		return changing("the cluster adds no member right now: %v", err)
	}
	return fmt.Errorf("add member: %w", err)
}

// postMember adds a member.
func (s *Server) postMember(r *http.Request) (any, error) {
	var req joinRequest
	if err := decodeBody(r, &req); err != nil {
		return nil, err
	}
	if req.Name == "" || len(req.PeerURLs) == 0 {
		return nil, badRequest("name and peer_urls are needed")
	}
	for _, u := range req.PeerURLs {
		if _, err := config.ParseURLs(u); err != nil {
			return nil, badRequest("peer_urls: %v", err)
		}
	}
	ctx, cancel := requestContext(r)
	defer cancel()
	id, members, err := s.node.add(ctx, req.Name, req.PeerURLs)
	if err != nil {
		return nil, err
	}
	out := joined{ID: id}
	for _, m := range members {
		out.Members = append(out.Members, joinedPeer{m.MemberId, m.Name, m.PeerUrls})
	}
	s.cluster.events.add("member-added", req.Name)
	return out, nil
}

// samePeers compares lists of URLs without regard to their order.
func samePeers(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}
