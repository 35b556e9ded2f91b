// Package strictjson refuses texts that encoding/json reads although they are not what their writer
// may have meant: with a key that stands twice, bytes that are no UTF-8, or something behind the
// value.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxDepth is how deep arrays and objects may lie in each other.
const MaxDepth = 32

// Object checks that data is one JSON object and nothing else, in UTF-8, at most MaxDepth deep, in
// which no object has a key twice. Keys that differ in the case of letters only count as one,
// because encoding/json decodes both into the same field. The error says what is wrong, and is one
// line.
func Object(data []byte) error {
	if !utf8.Valid(data) {
		return errors.New("it is not UTF-8")
	}
	if text := bytes.TrimLeft(data, " \t\r\n"); len(text) > 0 && text[0] != '{' {
		return errors.New("it is not an object")
	}
	var raw json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber() // numbers of any size are for the decoder of the field
	return value(dec, 0)
}

// value reads one value, which lies in depth others.
func value(dec *json.Decoder, depth int) error {
	token, err := dec.Token()
	if err != nil {
		return err
	}
	open, nested := token.(json.Delim)
	if !nested {
		return nil
	}
	if depth >= MaxDepth {
		return fmt.Errorf("it is nested more than %d deep", MaxDepth)
	}
	seen := map[string]bool{}
	for dec.More() {
		if open == '{' {
			if err := key(dec, seen); err != nil {
				return err
			}
		}
		if err := value(dec, depth+1); err != nil {
			return err
		}
	}
	_, err = dec.Token()
	return err
}

// key reads a key of an object that has those of seen.
func key(dec *json.Decoder, seen map[string]bool) error {
	token, err := dec.Token()
	if err != nil {
		return err
	}
	name, _ := token.(string) // the syntax was checked
	folded := fold(name)
	if seen[folded] {
		return fmt.Errorf("the key %.40q stands twice", name)
	}
	seen[folded] = true
	return nil
}

// fold maps names that strings.EqualFold takes for one to the same text: each letter becomes the
// first of those that differ from it in case only. Lower case would not do: the Kelvin sign is such
// a letter beside K and k.
func fold(name string) string {
	return strings.Map(func(r rune) rune {
		first := r
		for other := unicode.SimpleFold(r); other != r; other = unicode.SimpleFold(other) {
			first = min(first, other)
		}
		return first
	}, name)
}
