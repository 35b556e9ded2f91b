package config

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"

	"github.com/BurntSushi/toml"
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
	return fmt.Errorf("unknown key %q%s", name, suggest(name, knownKeys("", reflect.TypeFor[Config]())))
}

func known(list []string, s string) bool { return slices.Contains(list, s) }

// Suggest names the nearest known word, for error messages; "" if none is near.
func suggest(name string, words []string) string {
	if near := Nearest(name, words); near != "" {
		return fmt.Sprintf(", did you mean %q?", near)
	}
	return ""
}

// Nearest returns the word with the smallest edit distance, "" if none is at all similar.
func Nearest(name string, words []string) string {
	best, bestDist := "", len(name)/2+1
	for _, w := range words {
		if d := distance(name, w); d < bestDist {
			best, bestDist = w, d
		}
	}
	return best
}

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

// distance is the Levenshtein distance.
func distance(a, b string) int {
	prev := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := range len(a) {
		cur := make([]int, len(b)+1)
		cur[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			cur[j+1] = min(prev[j+1]+1, cur[j]+1, prev[j]+cost)
		}
		prev = cur
	}
	return prev[len(b)]
}
