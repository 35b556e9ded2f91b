package tomlfile

import (
	"bytes"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// Keys lists the dotted keys of a struct type, tables before what they hold, in the order of the
// fields. Those of lists of structs are among them.
func Keys(t reflect.Type) []string { return keys("", t) }

func keys(prefix string, t reflect.Type) []string {
	var out []string
	for f := range fields(t) {
		name := prefix + f.Tag.Get("toml")
		out = append(out, name)
		ft := f.Type
		if ft.Kind() == reflect.Slice {
			ft = ft.Elem()
		}
		if ft.Kind() == reflect.Struct {
			out = append(out, keys(name+".", ft)...)
		}
	}
	return out
}

// fields are those that are written to a file.
func fields(t reflect.Type) func(yield func(reflect.StructField) bool) {
	return func(yield func(reflect.StructField) bool) {
		for i := range t.NumField() {
			if tag := t.Field(i).Tag.Get("toml"); tag != "" && tag != "-" && !yield(t.Field(i)) {
				return
			}
		}
	}
}

// Prefixed is comments with a prefix before each key: those of a table that several files have.
func Prefixed(prefix string, comments map[string]string) map[string]string {
	out := make(map[string]string, len(comments))
	for key, text := range comments {
		out[prefix+key] = text
	}
	return out
}

// Merged is all of the comments in one.
func Merged(comments ...map[string]string) map[string]string {
	out := map[string]string{}
	for _, c := range comments {
		maps.Copy(out, c)
	}
	return out
}

const columns = 100

// Sample is a file with the title, and every key of defaults, a pointer to a struct, with its value
// and its comment. Lists without elements are commented out: reading the sample gives defaults
// again. A key without a comment is an error.
func Sample(title string, defaults any, comments map[string]string) (string, error) {
	var encoded bytes.Buffer
	enc := toml.NewEncoder(&encoded)
	enc.Indent = ""
	if err := enc.Encode(defaults); err != nil {
		return "", fmt.Errorf("encode sample: %w", err)
	}
	for _, key := range Keys(reflect.TypeOf(defaults).Elem()) {
		if comments[key] == "" {
			return "", fmt.Errorf("encode sample: %s has no comment", key)
		}
	}
	lists := emptyLists("", reflect.ValueOf(defaults).Elem())
	var out strings.Builder
	comment(&out, title)
	out.WriteString("\n")
	table, seen := "", map[string]bool{}
	finish := func() {
		for _, key := range lists {
			if in, name := split(key); in == table && !seen[key] {
				seen[key] = true
				comment(&out, comments[key])
				fmt.Fprintf(&out, "#%s = []\n", name)
			}
		}
	}
	for line := range strings.Lines(encoded.String()) {
		key := ""
		if m := headerLine.FindStringSubmatch(line); m != nil {
			finish()
			table = bare(m[2])
			key = table
			out.WriteString("\n")
		} else if m := keyLine.FindStringSubmatch(line); m != nil {
			key = strings.TrimPrefix(table+"."+bare(m[2]), ".")
		} else {
			continue // blank lines are set anew
		}
		if !seen[key] {
			seen[key] = true
			comment(&out, comments[key])
		}
		out.WriteString(line)
	}
	finish()
	return out.String(), nil
}

// emptyLists are the dotted keys of lists that the library does not write.
func emptyLists(prefix string, v reflect.Value) []string {
	var out []string
	for f := range fields(v.Type()) {
		name, fv := prefix+f.Tag.Get("toml"), v.FieldByIndex(f.Index)
		switch {
		case fv.Kind() == reflect.Struct:
			out = append(out, emptyLists(name+".", fv)...)
		case fv.Kind() == reflect.Slice && fv.Len() == 0:
			out = append(out, name)
		case fv.Kind() == reflect.Slice && fv.Index(0).Kind() == reflect.Struct:
			for i := range fv.Len() {
				out = append(out, emptyLists(name+".", fv.Index(i))...)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// split separates the last part of a dotted key.
func split(key string) (table, name string) {
	i := strings.LastIndexByte(key, '.')
	return key[:max(i, 0)], key[i+1:]
}

// comment writes text as comment lines.
func comment(out *strings.Builder, text string) {
	line := "#"
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > columns {
			out.WriteString(line + "\n")
			line = "#"
		}
		line += " " + word
	}
	if line != "#" {
		out.WriteString(line + "\n")
	}
}
