package config

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"

	"github.com/BurntSushi/toml"

	"github.com/tinykv/tinykv/pkg/cli"
)

// Sample returns the default configuration as a TOML file.
func Sample() (string, error) {
	c := Default()
	c.Name, c.DataDir = "pd", "default.pd"
	var b bytes.Buffer
	b.WriteString("# Defaults of tinyscheduler. Flags override the file.\n")
	if err := toml.NewEncoder(&b).Encode(c); err != nil {
		return "", fmt.Errorf("encode sample: %w", err)
	}
	return b.String(), nil
}

func unknownKey(name string) error {
	return fmt.Errorf("unknown key %q%s", name, cli.DidYouMean("%q", name, knownKeys("", reflect.TypeFor[Config]())))
}

func known(list []string, s string) bool { return slices.Contains(list, s) }

func knownKeys(prefix string, t reflect.Type) []string {
	var out []string
	for i := range t.NumField() {
		f := t.Field(i)
		tag := f.Tag.Get("toml")
		if tag == "" || tag == "-" {
			continue
		}
		out = append(out, prefix+tag)
		ft := f.Type
		if ft.Kind() == reflect.Slice {
			ft = ft.Elem()
		}
		if ft.Kind() == reflect.Struct {
			out = append(out, knownKeys(prefix+tag+".", ft)...)
		}
	}
	return out
}
