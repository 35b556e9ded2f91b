package complete

import (
	"context"
	"encoding/json"
	"errors"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"github.com/tinykv/tinykv/kv/settings"
)

// answers of a placement service.
var answers = map[string]string{
	"/stores":            `{"stores":[{"id":1,"address":"a:1"},{"id":4,"address":"a:2"}]}`,
	"/regions?limit=200": `{"regions":[{"id":2,"start_key":""},{"id":9,"start_key":"61"}]}`,
	"/members":           `{"members":[{"name":"pd1"}]}`,
	"/schedulers":        `{"schedulers":[{"name":"merge"}]}`,
	"/explain":           `{"decisions":[{"scheduler":"merge","result":"nothing"}]}`,
	"/config":            `{"schedule":{"b":1,"a":"x"}}`,
}

func ask(_ context.Context, path string, into any) error {
	if answers[path] == "" {
		return errors.New("not found")
	}
	return json.Unmarshal([]byte(answers[path]), into)
}

func TestArguments(t *testing.T) {
	tree := func(group, use string) *cobra.Command {
		root, parent := &cobra.Command{Use: "tool"}, &cobra.Command{Use: group}
		sub := &cobra.Command{Use: use, Run: func(*cobra.Command, []string) {}}
		sub.Flags().String("encoding", "", "")
		sub.Flags().Uint64("region", 0, "")
		root.AddCommand(parent)
		parent.AddCommand(sub)
		Add(root, ask, []string{"no-leader"})
		return sub
	}
	for _, c := range []struct {
		group, use string
		given      []string
		want       []string
	}{
		{"store", "show ID", nil, []string{"1\ta:1", "4\ta:2"}},
		{"store", "show ID", []string{"1"}, nil},
		{"region", "show ID", nil, []string{"2", "9\t61"}},
		{"region", "move-peer ID FROM TO", []string{"2"}, []string{"1\ta:1", "4\ta:2"}},
		{"region", "merge ID INTO", []string{"2"}, []string{"2", "9\t61"}},
		{"region", "check [DEFECT]", nil, []string{"no-leader"}},
		{"member", "remove NAME", nil, []string{"pd1"}},
		{"scheduler", "pause NAME", nil, []string{"merge"}},
		{"x", "explain [POLICY [REGION]]", nil, []string{"merge\tnothing"}},
		{"x", "explain [POLICY [REGION]]", []string{"merge"}, []string{"2", "9\t61"}},
		{"config", "set NAME VALUE", nil, []string{"schedule.a\t\"x\"", "schedule.b\t1"}},
		{"config", "set NAME VALUE", []string{"a"}, nil},
		{"config", "set STORE SETTING VALUE", nil, []string{"1\ta:1", "4\ta:2"}},
		{"config", "set STORE SETTING VALUE", []string{"1"}, settings.Adjustable},
	} {
		got, directive := tree(c.group, c.use).ValidArgsFunction(tree(c.group, c.use), c.given, "")
		require.Equal(t, c.want, got, "%s %s %v", c.group, c.use, c.given)
		require.Equal(t, cobra.ShellCompDirectiveNoFileComp, directive)
	}
	sub := tree("config", "get STORE [SETTING]")
	sub.Flags().Bool("all", true, "")
	offered, _ := sub.ValidArgsFunction(sub, nil, "")
	require.Equal(t, settings.Adjustable, offered, "--all stands for the store")
	sub = tree("export", "file FILE")
	_, directive := sub.ValidArgsFunction(sub, nil, "")
	require.Equal(t, cobra.ShellCompDirectiveDefault, directive, "files are the shell's")
	flag, ok := sub.GetFlagCompletionFunc("encoding")
	require.True(t, ok)
	got, _ := flag(sub, nil, "")
	require.Equal(t, []string{"text", "hex", "escaped"}, got)
	flag, ok = sub.GetFlagCompletionFunc("region")
	require.True(t, ok)
	got, _ = flag(sub, nil, "")
	require.Equal(t, []string{"2", "9\t61"}, got)
}

// TestUnreachable: without an answer nothing is offered.
func TestUnreachable(t *testing.T) {
	c := completer{ask: func(context.Context, string, any) error { return errors.New("down") }}
	got, directive := c.offer("store")(&cobra.Command{}, nil, "")
	require.Empty(t, got)
	require.Equal(t, cobra.ShellCompDirectiveNoFileComp, directive)
}
