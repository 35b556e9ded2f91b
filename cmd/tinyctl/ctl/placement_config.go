package ctl

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// settings are those of the placement service: section, name, JSON value.
type settings map[string]map[string]json.RawMessage

func (a *app) configCmd() *cobra.Command {
	get := &cobra.Command{
		Use: "get [NAME]", Short: "Print all settings, or the value of one",
		Args: args(cobra.MaximumNArgs(1)),
	}
	get.RunE = func(cmd *cobra.Command, argv []string) error {
		var all settings
		if len(argv) == 0 {
			return a.show(cmd, http.MethodGet, "/config", nil, &all, func() error {
				return a.printSettings(all)
			})
		}
		if _, err := a.ask(cmd.Context(), http.MethodGet, "/config", nil, &all); err != nil {
			return err
		}
		section, name, err := all.find(argv[0])
		if err != nil {
			return err
		}
		return a.printSetting(all[section][name])
	}
	set := command("set NAME VALUE", "Change a setting of all members; it survives restarts",
		func(cmd *cobra.Command, argv []string) error {
			var all settings
			if _, err := a.ask(cmd.Context(), http.MethodGet, "/config", nil, &all); err != nil {
				return err
			}
			section, name, err := all.find(argv[0])
			if err != nil {
				return err
			}
			value, err := like(all[section][name], argv[1])
			if err != nil {
				return usagef("%s: %w", name, err)
			}
			body := settings{section: {name: value}}
			return a.show(cmd, http.MethodPatch, "/config", body, &all, func() error {
				_, err := fmt.Fprintf(a.stdout, "%s.%s = %s\n", section, name,
					plain(all[section][name]))
				return err
			})
		})
	return group("config", "Settings of the placement service that change while it runs", get, set)
}

// find takes section.name, or name alone.
func (s settings) find(want string) (section, name string, err error) {
	for section, values := range s {
		for name := range values {
			if want == name || want == section+"."+name {
				return section, name, nil
			}
		}
	}
	return "", "", notFoundf("no setting %q; `tinyctl config get` lists them", want)
}

// like writes text as JSON of the kind the setting has now.
func like(now json.RawMessage, text string) (json.RawMessage, error) {
	if kind := bytes.TrimSpace(now); len(kind) > 0 && kind[0] == '"' {
		return json.Marshal(text)
	}
	// Lists of words need no brackets. A null is a list without any.
	if kind := bytes.TrimSpace(now); (kind[0] == '[' || string(kind) == "null") &&
		!strings.HasPrefix(text, "[") {
		return json.Marshal(strings.FieldsFunc(text, func(r rune) bool {
			return r == ',' || r == ' '
		}))
	}
	if !json.Valid([]byte(text)) {
		return nil, fmt.Errorf("%q does not fit; it is %s now", text, plain(now))
	}
	return json.RawMessage(text), nil
}

// plain is a value without quotes and on one line.
func plain(v json.RawMessage) string {
	if string(v) == "null" {
		return "[]"
	}
	var text string
	if json.Unmarshal(v, &text) == nil {
		return text
	}
	var out bytes.Buffer
	if json.Compact(&out, v) != nil {
		return string(v)
	}
	return out.String()
}

func (a *app) printSetting(v json.RawMessage) error {
	if a.output == "json" {
		return a.raw(v)
	}
	_, err := fmt.Fprintln(a.stdout, plain(v))
	return err
}

func (a *app) printSettings(all settings) error {
	var rows [][]string
	for section, values := range all {
		for name, v := range values {
			rows = append(rows, []string{section + "." + name, plain(v)})
		}
	}
	slices.SortFunc(rows, func(x, y []string) int { return cmp.Compare(x[0], y[0]) })
	return a.table([]string{"SETTING", "VALUE"}, rows)
}
