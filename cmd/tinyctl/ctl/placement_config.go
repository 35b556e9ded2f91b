package ctl

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/kv/client"
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

// storeSettings are settings of one store.
type storeSettings struct {
	Store    uint64         `json:"store_id"`
	Settings []storeSetting `json:"settings"`
}

type storeSetting struct {
	Name         string `json:"name"`
	Value        string `json:"current"`
	Default      string `json:"default"`
	NeedsRestart bool   `json:"needs_restart"`
}

// storeConfigCmd is configCmd for the settings that each store has of its own.
func storeConfigCmd(a *app) *cobra.Command {
	get := &cobra.Command{
		Use: "get STORE [SETTING]", Short: "Print the settings of a store, or one of them",
		Args: cobra.ArbitraryArgs,
	}
	all := get.Flags().Bool("all", false, "of all stores, instead of STORE")
	get.RunE = func(cmd *cobra.Command, argv []string) error {
		only, rest, err := chooseStore(cmd, argv, *all, 0, 1)
		if err != nil {
			return err
		}
		return eachStore(a, cmd, only, func(ctx context.Context, c *client.Client, id uint64) (
			[]client.Setting, error,
		) {
			list, err := c.StoreSettings(ctx, id)
			if err != nil || len(rest) == 0 {
				return list, err
			}
			list = slices.DeleteFunc(list, func(s client.Setting) bool {
				return s.Name != rest[0] && !strings.HasSuffix(s.Name, "."+rest[0])
			})
			if len(list) == 0 {
				return nil, notFoundf("no setting %q", rest[0])
			}
			return list, nil
		})
	}
	set := &cobra.Command{
		Use:   "set STORE SETTING VALUE",
		Short: "Change a setting of a running store until it starts again; nothing is stored",
		Args:  cobra.ArbitraryArgs,
	}
	setAll := set.Flags().Bool("all", false, "of all stores, instead of STORE")
	set.RunE = func(cmd *cobra.Command, argv []string) error {
		only, rest, err := chooseStore(cmd, argv, *setAll, 2, 2)
		if err != nil {
			return err
		}
		return changeStores(a, cmd, only, rest[0], rest[1])
	}
	return group("config", "Settings of stores; some change while the store runs", get, set)
}

// storeLogLevelCmd changes the log level of one store, or of all.
func storeLogLevelCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:       "loglevel LEVEL [STORE]",
		Short:     "Change the log level of a store, or of all, until the next start",
		Args:      args(cobra.RangeArgs(1, 2)),
		ValidArgs: logLevels,
	}
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		if !slices.Contains(logLevels, argv[0]) {
			return usagef("%q is none of %s", argv[0], strings.Join(logLevels, ", "))
		}
		only, _, err := chooseStore(cmd, argv[1:], len(argv) == 1, 0, 0)
		if err != nil {
			return err
		}
		return changeStores(a, cmd, only, "log.level", argv[0])
	}
	return cmd
}

// chooseStore takes the store, 0 for all, off the arguments, of which least to most are to follow.
func chooseStore(cmd *cobra.Command, argv []string, all bool, least, most int) (
	only uint64, rest []string, err error,
) {
	if rest = argv; !all {
		if len(argv) == 0 {
			return 0, nil, usagef("give the id of a store; usage: %s", cmd.UseLine())
		}
		if only, err = number(argv[0], "store"); err != nil {
			return 0, nil, err
		}
		rest = argv[1:]
	}
	if len(rest) < least || len(rest) > most {
		return 0, nil, usagef("wrong number of arguments; usage: %s", cmd.UseLine())
	}
	return only, rest, nil
}

func changeStores(a *app, cmd *cobra.Command, only uint64, name, value string) error {
	return eachStore(a, cmd, only, func(ctx context.Context, c *client.Client, id uint64) (
		[]client.Setting, error,
	) {
		s, err := c.SetStoreSetting(ctx, id, name, value)
		return []client.Setting{s}, err
	})
}

// eachStore asks one store, or all that are not retired, and prints the settings that they answer
// with. Stores that fail are left out of that and are the error.
func eachStore(a *app, cmd *cobra.Command, only uint64, ask func(
	ctx context.Context, c *client.Client, id uint64) ([]client.Setting, error),
) error {
	c, err := a.open(cmd.Context())
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), a.timeout)
	defer cancel()
	rows, err := a.stores(ctx)
	if err != nil {
		return err
	}
	out, errs, known := []storeSettings{}, []error(nil), false
	for _, row := range rows {
		if only != 0 && row.ID != only || only == 0 && strings.EqualFold(row.State, "tombstone") {
			continue
		}
		known = true
		got, err := ask(ctx, c, row.ID)
		if err != nil {
			errs = append(errs, settingError(row.ID, err))
			continue
		}
		one := storeSettings{Store: row.ID, Settings: []storeSetting{}}
		for _, s := range got {
			one.Settings = append(one.Settings,
				storeSetting{s.Name, s.Value, s.Default, s.NeedsRestart})
		}
		out = append(out, one)
	}
	if only != 0 && !known {
		return notFoundf("no store %d is known", only)
	}
	if len(out) > 0 || len(errs) == 0 {
		errs = append(errs, printStoreSettings(a, out))
	}
	return errors.Join(errs...)
}

// settingError gives an error of a store the exit code that the placement service's settings have.
func settingError(store uint64, err error) error {
	text := err.Error()
	st, ok := status.FromError(err)
	if ok {
		text = st.Message()
	}
	text = fmt.Sprintf("store %d: %s", store, text)
	switch {
	case ok && st.Code() == codes.NotFound:
		return notFoundf("%s; `tinyctl store config get %d` lists them", text, store)
	case ok && st.Code() == codes.InvalidArgument:
		return usagef("%s", text)
	case ok:
		return errors.New(text)
	}
	return fmt.Errorf("store %d: %w", store, err)
}

func printStoreSettings(a *app, all []storeSettings) error {
	if a.output == "json" {
		return a.json(map[string]any{"stores": all})
	}
	var rows [][]string
	for _, st := range all {
		for _, s := range st.Settings {
			change := "until the next start"
			if s.NeedsRestart {
				change = "needs a restart"
			}
			rows = append(rows, []string{id(st.Store), s.Name, s.Value, s.Default, change})
		}
	}
	return a.table([]string{"STORE", "SETTING", "VALUE", "DEFAULT", "A CHANGE"}, rows)
}
