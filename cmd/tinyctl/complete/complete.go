// Package complete offers what may stand for the arguments and flags of tinyctl: ids, names and
// settings of the cluster, and the values of flags that have few.
package complete

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tinykv/tinykv/kv/settings"
)

// Ask makes a GET request of the placement service's API and decodes the answer. It must end when
// ctx does.
type Ask func(ctx context.Context, path string, into any) error

// patience bounds the wait for the cluster: a person has pressed a key.
const patience = 2 * time.Second

// most bounds how many regions are offered.
const most = 200

// enums are the values of flags that have few, in every command that has the flag.
var enums = map[string][]string{
	"output":   {"table", "json"},
	"encoding": {"text", "hex", "escaped"},
	"cf":       {"default", "write", "lock"},
	"driver":   {"tinykv", "etcd"},
	"mode":     {"raw", "txn"},
	"like":     {"bytes", "hex", "uuid", "decimal"},
}

// Add gives root and all commands below it their completions.
func Add(root *cobra.Command, ask Ask, defects []string) {
	c := completer{ask, defects}
	c.add(root)
}

type completer struct {
	ask     Ask
	defects []string
}

type offer = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

func (c completer) add(cmd *cobra.Command) {
	for name, values := range enums {
		if cmd.Flag(name) == nil || cmd.HasParent() && cmd.InheritedFlags().Lookup(name) != nil {
			continue
		}
		// the only error: there is one already
		_ = cmd.RegisterFlagCompletionFunc(name, fixed(values))
	}
	if cmd.Flag("region") != nil {
		_ = cmd.RegisterFlagCompletionFunc("region", c.offer("region"))
	}
	if cmd.ValidArgsFunction == nil && cmd.ValidArgs == nil && !cmd.HasSubCommands() {
		if kinds := Kinds(cmd); kinds != nil {
			cmd.ValidArgsFunction = func(
				cmd *cobra.Command, given []string, partial string,
			) ([]string, cobra.ShellCompDirective) {
				kinds := kinds
				all, err := cmd.Flags().GetBool("all")
				if err == nil && all && kinds[0] == "store" {
					kinds = kinds[1:] // --all stands for the store
				}
				if len(given) >= len(kinds) {
					return nil, cobra.ShellCompDirectiveNoFileComp
				}
				return c.offer(kinds[len(given)])(cmd, given, partial)
			}
		}
	}
	for _, sub := range cmd.Commands() {
		c.add(sub)
	}
}

func fixed(values []string) offer {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return values, cobra.ShellCompDirectiveNoFileComp
	}
}

// kinds are what the words of a usage line stand for: by the group of the command and the word, or
// by the word alone.
var kinds = map[string]string{
	"store ID": "store", "region ID": "region", "STORE": "store", "FROM": "store", "TO": "store",
	"region INTO": "region", "REGION": "region", "member NAME": "member",
	"scheduler NAME": "scheduler", "POLICY": "policy", "config NAME": "setting",
	"DEFECT": "defect", "SETTING": "setting of a store", "DIR": "file", "FILE": "file",
}

// Kinds are what the arguments of a command stand for, "" for something that cannot be offered.
// Without arguments it is nil.
func Kinds(cmd *cobra.Command) []string {
	group := ""
	if cmd.HasParent() {
		group = cmd.Parent().Name()
	}
	var out []string
	for _, word := range strings.Fields(cmd.Use)[1:] {
		word = strings.Trim(word, "[].")
		kind, ok := kinds[group+" "+word]
		if !ok {
			kind = kinds[word]
		}
		out = append(out, kind)
	}
	return out
}

func (c completer) offer(kind string) offer {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		switch kind {
		case "file":
			return nil, cobra.ShellCompDirectiveDefault
		case "setting of a store":
			return settings.Adjustable, cobra.ShellCompDirectiveNoFileComp
		case "defect":
			return c.defects, cobra.ShellCompDirectiveNoFileComp
		}
		ctx := cmd.Context()
		if ctx == nil {
			ctx = context.Background()
		}
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		values, err := c.look(ctx, kind)
		if err != nil {
			cobra.CompDebugln(err.Error(), false)
		}
		return values, cobra.ShellCompDirectiveNoFileComp
	}
}

// look asks the cluster. The values have a description behind a tab, as cobra expects it.
func (c completer) look(ctx context.Context, kind string) ([]string, error) {
	switch kind {
	case "store":
		return c.list(ctx, "/stores", "stores", "id", "address")
	case "region":
		return c.list(ctx, fmt.Sprintf("/regions?limit=%d", most), "regions", "id", "start_key")
	case "member":
		return c.list(ctx, "/members", "members", "name", "")
	case "scheduler":
		return c.list(ctx, "/schedulers", "schedulers", "name", "")
	case "policy":
		return c.list(ctx, "/explain", "decisions", "scheduler", "result")
	case "setting":
		var all map[string]map[string]json.RawMessage
		err := c.ask(ctx, "/config", &all)
		var out []string
		for section, values := range all {
			for name, v := range values {
				out = append(out, section+"."+name+"\t"+string(v))
			}
		}
		slices.Sort(out)
		return out, err
	}
	return nil, nil
}

// list takes a member of each element of a list.
func (c completer) list(ctx context.Context, path, in, member, about string) ([]string, error) {
	var answer map[string]json.RawMessage
	if err := c.ask(ctx, path, &answer); err != nil {
		return nil, err
	}
	var all []map[string]json.RawMessage
	if err := json.Unmarshal(answer[in], &all); err != nil {
		return nil, err
	}
	var out []string
	for _, one := range all {
		text := strings.Trim(string(one[member]), `"`)
		if more := strings.Trim(string(one[about]), `"`); more != "" {
			text += "\t" + more
		}
		out = append(out, text)
	}
	return out, nil
}
