package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// alarm is a state of the storage in which it refuses writes: nothing is handed out then, and
// nobody leads, since leading is renewed by writing.
type alarm struct {
	Member uint64 `json:"member_id"`
	Kind   string `json:"kind"` // NOSPACE or CORRUPT
}

const reclaimHint = "run 'tinyctl member reclaim'; if that is not enough, raise quota-backend-bytes and restart the members one by one"

// alarmText names the alarms, "" if there are none.
func (s *Server) alarmText() string {
	var out []string
	for _, a := range s.node.alarms() {
		name := fmt.Sprint(a.Member)
		for _, m := range s.members() {
			if m.MemberId == a.Member {
				name = m.Name
			}
		}
		out = append(out, fmt.Sprintf("etcd refuses writes: alarm %s of member %s", a.Kind, name))
	}
	return strings.Join(out, "; ")
}

// noLeader is the answer where the leader is needed and there is none.
func (s *Server) noLeader() error {
	if text := s.alarmText(); text != "" {
		return status.Error(codes.Unavailable, "not leader: "+text+"; "+reclaimHint)
	}
	return errNotLeader
}

// noLeaderAPI is noLeader for HTTP.
func (s *Server) noLeaderAPI() error {
	if text := s.alarmText(); text != "" {
		return &apiError{
			Code: "no-space", Message: "no placement leader: " + text, Detail: reclaimHint,
			status: http.StatusServiceUnavailable,
		}
	}
	return errNotLeader
}

// hasCode tells whether an error of etcd's client carries the code.
func hasCode(err error, code codes.Code) bool {
	var e interface{ Code() codes.Code }
	return errors.As(err, &e) && e.Code() == code
}

// postReclaim makes room in this member's storage. Every member has to do it for itself.
func (s *Server) postReclaim(r *http.Request) (any, error) {
	ctx, cancel := context.WithTimeout(r.Context(), reclaimTimeout)
	defer cancel()
	if err := s.node.reclaim(ctx); err != nil {
		return nil, err
	}
	return map[string]any{"reclaimed": s.cfg.Name, "alarms": nonNil(s.node.alarms())}, nil
}
