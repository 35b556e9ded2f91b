package config

import (
	"encoding"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/tinykv/tinykv/pkg/tomlfile"
)

// Value is an option as text.
type Value struct {
	// Name is the option's key in the file with its section, such as raftlog.cache-size.
	Name, Text string
}

// Values are all options but the sections, in the order of the file.
func (c *Config) Values() []Value {
	var out []Value
	for _, key := range tomlfile.Keys(reflect.TypeFor[Config]()) {
		if f := c.field(key); f.IsValid() && !isSection(f) {
			out = append(out, Value{key, textOf(f)})
		}
	}
	return out
}

// SetValue changes one option, which must be text, a size or a duration, as the file would. It does
// not validate.
func (c *Config) SetValue(name, text string) error {
	f := c.field(name)
	if !f.IsValid() || isSection(f) {
		return fmt.Errorf("no option %q", name)
	}
	if u, ok := f.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if err := u.UnmarshalText([]byte(text)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	}
	if f.Kind() != reflect.String {
		return fmt.Errorf("%s: an option of type %s is not set from text", name, f.Type())
	}
	f.SetString(text)
	return nil
}

// ValidateValues reports every fault of options that are no addresses, files or certificates, each
// naming its option. It does no IO.
func (c *Config) ValidateValues() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if err := c.Log.Validate(); err != nil {
		errs = append(errs, err)
	}
	c.Server.validate(bad, c.Raftstore.MaxEntry)
	c.Storage.validate(bad)
	c.GC.validate(bad)
	if c.RaftLog.SegmentSize < 64*KiB || c.RaftLog.Cache < 0 {
		bad("raftlog: segment-size must be at least 64KiB and cache-size not negative")
	}
	c.Raftstore.validate(bad)
	return errors.Join(errs...)
}

// field is the option of a key; not valid if there is none.
func (c *Config) field(key string) reflect.Value {
	v := reflect.ValueOf(c).Elem()
	for name := range strings.SplitSeq(key, ".") {
		if v.Kind() != reflect.Struct {
			return reflect.Value{}
		}
		next := reflect.Value{}
		for i := range v.NumField() {
			if tag, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("toml"), ","); tag == name {
				next = v.Field(i)
			}
		}
		if v = next; !v.IsValid() {
			return v
		}
	}
	return v
}

// textOf is a value on one line; lists and labels have commas.
func textOf(f reflect.Value) string {
	switch v := f.Interface().(type) {
	case []string:
		return strings.Join(v, ",")
	case map[string]string:
		var pairs []string
		for _, name := range slices.Sorted(maps.Keys(v)) {
			pairs = append(pairs, name+"="+v[name])
		}
		return strings.Join(pairs, ",")
	}
	return fmt.Sprint(f.Interface())
}

// isSection tells whether a field is a section of options rather than one.
func isSection(f reflect.Value) bool {
	_, text := f.Addr().Interface().(encoding.TextUnmarshaler)
	return f.Kind() == reflect.Struct && !text
}
