package ctl

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// reclaimTimeout bounds a member's defragmentation.
const reclaimTimeout = 5 * time.Minute

func (a *app) memberCmd() *cobra.Command {
	return group("member", "Members of the placement service",
		a.memberListCmd(),
		command("resign", "Have the leader give the leadership up",
			func(cmd *cobra.Command, _ []string) error {
				return a.changeMember(cmd, http.MethodPost, "/leader/resign",
					"%s gave the leadership up\n", "resigned")
			}),
		command("transfer NAME", "Give the leadership to a member",
			func(cmd *cobra.Command, argv []string) error {
				return a.changeMember(cmd, http.MethodPost,
					"/leader/transfer?to="+url.QueryEscape(argv[0]), "%s gets the leadership\n",
					"successor")
			}),
		command("remove NAME", "Remove a member that does not lead",
			func(cmd *cobra.Command, argv []string) error {
				return a.changeMember(cmd, http.MethodDelete, "/members/"+url.PathEscape(argv[0]),
					"removed %s\n", "removed")
			}),
		command("promote NAME", "Make a member that joined a voter now",
			func(cmd *cobra.Command, argv []string) error {
				return a.changeMember(cmd, http.MethodPost,
					"/members/"+url.PathEscape(argv[0])+"/promote", "promoted %s\n", "promoted")
			}),
		command("reclaim", "Make room in the members' etcd and end the alarm NOSPACE",
			a.memberReclaim), memberLogLevelCmd(a),
	)
}

// memberLogLevelCmd goes to every member: each has a level of its own.
func memberLogLevelCmd(a *app) *cobra.Command {
	cmd := command("loglevel LEVEL",
		"Change the log level of all members until they are started again; nothing is stored", nil)
	cmd.ValidArgs = logLevels
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		if !slices.Contains(logLevels, argv[0]) {
			return usagef("%q is none of %s", argv[0], strings.Join(logLevels, ", "))
		}
		path := "/log/level?level=" + url.QueryEscape(argv[0])
		return eachMember(a, cmd, "changed", func(one *app, name string) error {
			if _, err := one.ask(cmd.Context(), http.MethodPut, path, nil, nil); err != nil {
				return err
			}
			_, err := fmt.Fprintf(one.stdout, "%s: log level %s\n", name, argv[0])
			return err
		})
	}
	return cmd
}

// logLevels are those of package log.
var logLevels = []string{"debug", "info", "warn", "error", "fatal"}

// memberReclaim goes to every member: each has to make room in its own data.
func (a *app) memberReclaim(cmd *cobra.Command, _ []string) error {
	return eachMember(a, cmd, "reclaimed", func(one *app, _ string) error {
		one.timeout = max(a.timeout, reclaimTimeout)
		return one.changeMember(cmd, http.MethodPost, "/reclaim", "%s made room\n", "reclaimed")
	})
}

// eachMember does something to one member after the other. In JSON it prints, under field, the
// names of the members.
func eachMember(
	a *app, cmd *cobra.Command, field string, do func(one *app, name string) error,
) error {
	var out struct {
		Members []struct {
			Name       string   `json:"name"`
			ClientURLs []string `json:"client_urls"`
		} `json:"members"`
	}
	if _, err := a.ask(cmd.Context(), http.MethodGet, "/members", nil, &out); err != nil {
		return err
	}
	for _, m := range out.Members {
		one := *a
		if a.output == "json" {
			one.output, one.stdout = "table", io.Discard
		}
		one.scheduler = strings.Join(m.ClientURLs, ",")
		if err := do(&one, m.Name); err != nil {
			return fmt.Errorf("member %s: %w", m.Name, err)
		}
	}
	if a.output == "json" {
		names := []string{}
		for _, m := range out.Members {
			names = append(names, m.Name)
		}
		return a.json(map[string]any{field: names})
	}
	return nil
}

func (a *app) changeMember(cmd *cobra.Command, method, path, format, field string) error {
	var out map[string]any
	return a.show(cmd, method, path, nil, &out, func() error {
		_, err := fmt.Fprintf(a.stdout, format, out[field])
		return err
	})
}

func (a *app) memberListCmd() *cobra.Command {
	list := command("list", "List the members with their roles",
		func(cmd *cobra.Command, _ []string) error {
			var out struct {
				Members []struct {
					Name       string   `json:"name"`
					ID         uint64   `json:"id"`
					PeerURLs   []string `json:"peer_urls"`
					ClientURLs []string `json:"client_urls"`
					Leader     bool     `json:"leader"`
					EtcdLeader bool     `json:"etcd_leader"`
					Learner    bool     `json:"learner"`
					Alarm      string   `json:"alarm"`
				} `json:"members"`
			}
			return a.show(cmd, http.MethodGet, "/members", nil, &out, func() error {
				var rows [][]string
				for _, m := range out.Members {
					roles := []string{"follower"}
					if m.Leader {
						roles[0] = "leader"
					}
					if m.Learner {
						roles[0] = "learner"
					}
					if m.EtcdLeader {
						roles = append(roles, "etcd leader")
					}
					if m.Alarm != "" {
						roles = append(roles, "ALARM "+m.Alarm)
					}
					rows = append(rows, []string{
						m.Name, id(m.ID), strings.Join(roles, ", "),
						strings.Join(m.ClientURLs, " "), strings.Join(m.PeerURLs, " "),
					})
				}
				return a.table([]string{"MEMBER", "ID", "ROLE", "CLIENTS", "PEERS"}, rows)
			})
		})
	list.Aliases = []string{"ls"}
	return list
}
