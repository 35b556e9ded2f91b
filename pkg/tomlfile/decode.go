package tomlfile

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/tinykv/tinykv/pkg/cli"
)

// Decode overlays a file's text on into, a pointer to a struct. Errors begin with "line L, column
// C: ". A key that the struct does not have is an error that names the nearest known one, unless
// free accepts its dotted name; all of them are reported at once.
func Decode(text string, into any, free func(key string) bool) error {
	md, err := toml.Decode(text, into)
	if err != nil {
		return placed(text, err)
	}
	var errs []error
	for _, key := range md.Undecoded() {
		name := key.String()
		if free(name) {
			continue
		}
		near := cli.DidYouMean("%q", name, Keys(reflect.TypeOf(into).Elem()))
		errs = append(errs, fmt.Errorf("%sunknown key %q%s", Locate(text, name), name, near))
	}
	return errors.Join(errs...)
}

// lastKey is how the library names the key of a value of the wrong type.
var lastKey = regexp.MustCompile(`(?s)^toml: (?:line \d+ )?\(last key "(.*?)"\): (.*)$`)

// placed is an error of the library with its place in front.
func placed(text string, err error) error {
	var parse toml.ParseError
	if errors.As(err, &parse) {
		return fmt.Errorf("%s%s", positionAt(text, parse.Position.Start),
			strings.TrimPrefix(parse.Message, "toml: "))
	}
	if m := lastKey.FindStringSubmatch(err.Error()); m != nil {
		return fmt.Errorf("%s%s: %s", Locate(text, m[1]), m[1], m[2])
	}
	return errors.New(strings.TrimPrefix(err.Error(), "toml: "))
}

// Position is a place in a file, both from 1 on. The zero value is an unknown place.
type Position struct{ Line, Column int }

// String is "line L, column C: ", or nothing for an unknown place.
func (p Position) String() string {
	if p.Line == 0 {
		return ""
	}
	return fmt.Sprintf("line %d, column %d: ", p.Line, p.Column)
}

// positionAt is that of a byte. The library's own line is the next one if the byte ends a line.
func positionAt(text string, at int) Position {
	before := text[:min(at, len(text))]
	return Position{
		strings.Count(before, "\n") + 1, len(before) - strings.LastIndexByte(before, '\n'),
	}
}

var (
	headerLine = regexp.MustCompile(`^(\s*)\[\[?\s*([^\[\]]+?)\s*\]\]?`)
	keyLine    = regexp.MustCompile(`^(\s*)([A-Za-z0-9_."'\- ]+?)\s*=`)
)

// Locate finds where a file that the library has read sets a dotted key, or where the table is of
// that name. For a key inside of a value, such as an inline table, it is the place of the value.
// Text inside of values over several lines is no key.
func Locate(text, key string) Position {
	var best Position
	bestKey, table, quote, n := "", "", "", 0
	for line := range strings.Lines(text) {
		n++
		if quote != "" {
			if strings.Contains(line, quote) {
				quote = ""
			}
			continue
		}
		var here string
		var indent int
		if m := headerLine.FindStringSubmatch(line); m != nil {
			table = bare(m[2])
			here, indent = table, len(m[1])
		} else if m := keyLine.FindStringSubmatch(line); m != nil {
			here, indent = bare(m[2]), len(m[1])
			if table != "" {
				here = table + "." + here
			}
			for _, q := range []string{`"""`, `'''`} {
				if strings.Count(line, q) == 1 {
					quote = q
				}
			}
		}
		// The longest name wins that is the key, or what the key is in.
		if here != "" && len(here) > len(bestKey) &&
			(here == key || strings.HasPrefix(key, here+".")) {
			best, bestKey = Position{n, indent + 1}, here
		}
	}
	return best
}

// bare is a dotted key without quotes and blanks.
func bare(key string) string {
	parts := strings.Split(key, ".")
	for i, p := range parts {
		parts[i] = strings.Trim(strings.TrimSpace(p), `"'`)
	}
	return strings.Join(parts, ".")
}

// option begins the text of an error that names its option.
var option = regexp.MustCompile(`^([a-z][a-z0-9.-]*): `)

// Place adds to each of the joined errors that begin with an option, as "raftstore.read-mode: ...",
// where the file of that text sets it. Options that overridden accepts come from elsewhere and are
// left.
func Place(err error, file, text string, overridden func(key string) bool) error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		if err == nil {
			return nil
		}
		m := option.FindStringSubmatch(err.Error())
		if m == nil || overridden(m[1]) {
			return err
		}
		if p := Locate(text, m[1]); p != (Position{}) {
			return fmt.Errorf("config file %s, %s%w", file, p, err)
		}
		return err
	}
	errs := slices.Clone(joined.Unwrap())
	for i := range errs {
		errs[i] = Place(errs[i], file, text, overridden)
	}
	return errors.Join(errs...)
}
