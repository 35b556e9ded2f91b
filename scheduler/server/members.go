package server

import (
	"context"
	"fmt"
	"net/http"

	"go.uber.org/zap"
)

// members lists all members.
func (s *Server) members() []memberInfo { return s.node.members() }

// deleteMember removes a member. etcd itself refuses when the quorum would be lost.
func (s *Server) deleteMember(r *http.Request) (any, error) {
	name := r.PathValue("name")
	for _, m := range s.members() {
		if m.Name != name && fmt.Sprint(m.MemberId) != name {
			continue
		}
		ctx, cancel := requestContext(r)
		defer cancel()
		if m.MemberId == s.self.MemberId {
			return nil, badRequest("%s leads: transfer the leadership first", m.Name)
		}
		if err := s.node.remove(ctx, m.MemberId); err != nil {
			return nil, fmt.Errorf("remove member %s: %w", m.Name, err)
		}
		s.cluster.events.add("member-removed", m.Name)
		return map[string]any{"removed": m.Name}, nil
	}
	return nil, notFound("no member %q", name)
}

func (s *Server) promoteMember(r *http.Request) (any, error) {
	name := r.PathValue("name")
	for _, m := range s.members() {
		if m.Name == name {
			ctx, cancel := requestContext(r)
			defer cancel()
			if err := s.node.promote(ctx, m.MemberId); err != nil {
				return nil, fmt.Errorf("promote member %s: %w", name, err)
			}
			return map[string]any{"promoted": name}, nil
		}
	}
	return nil, notFound("no member %q", name)
}

// promoteLearners makes members that joined and caught up voters. etcd refuses while one is behind,
// so trying is all there is to do.
func (s *Server) promoteLearners(ctx context.Context) {
	for _, m := range s.members() {
		if !m.learner || m.Name == "" {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, requestTimeout)
		err := s.node.promote(ctx, m.MemberId)
		cancel()
		if err != nil {
			s.logger.Debug("learner not promoted yet", zap.String("name", m.Name), zap.Error(err))
			continue
		}
		s.logger.Info("promoted learner", zap.String("name", m.Name))
		s.cluster.events.add("member-promoted", m.Name)
	}
}
