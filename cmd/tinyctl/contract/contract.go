// Package contract gives the JSON that tinyctl prints one form, whatever it is made of:
//
//   - Ids and timestamps of transactions are strings of digits: numbers beyond 2^53 lose digits in
//     most programs that read JSON.
//   - Keys and values are two members: NAME_hex always, and NAME, the exact text, if the bytes are
//     valid UTF-8.
//   - Points in time are RFC 3339. Durations are numbers, and their unit ends the name.
//   - Sizes are in bytes.
//   - Lists are lists: empty ones are [], never null.
//
// Form does it by the names of members. The order of members stays.
package contract

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Keys tells how a document has its keys.
type Keys int

const (
	// Done: the members are as they should be already.
	Done Keys = iota
	// Hex: as in the answers of the placement service's API.
	Hex
	// Base64: as encoding/json writes bytes.
	Base64
)

// keyNames are the members that are keys, in documents that are not Done.
var keyNames = []string{"start_key", "end_key", "start", "end"}

// idNames are the members that are ids without showing it by _id at their end. As lists of numbers
// they are lists of ids.
var idNames = []string{
	"id", "store", "region", "leader_store", "vote", "ts",
	"regions", "stores", "pending_peers", "lost_stores", "missing_stores", "values_without_record",
}

// countNames are of idNames those that as numbers are counts.
var countNames = []string{"regions", "stores"}

// listNames are lists that the placement service writes as null while they are empty.
var listNames = []string{
	"location-labels", "lines", "steps", "regions", "stores", "operators", "events", "decisions",
	"members", "peers", "defects", "conditions", "holds", "schedulers", "client_urls", "peer_urls",
	"rebirths", "ends", "holes", "lost_stores", "missing_stores", "problems",
}

// Text is b as text; nil if it is not valid UTF-8.
func Text(b []byte) *string {
	if !utf8.Valid(b) {
		return nil
	}
	s := string(b)
	return &s
}

type member struct {
	name  string
	value any // object, list, or what json.Decoder.Token returns
}

type (
	object []member
	list   []any
)

// Form brings a JSON document into the form, indented, with a newline at the end. The error is that
// it is not JSON, or that a key is not in the encoding that keys names.
func Form(doc []byte, keys Keys) ([]byte, error) {
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.UseNumber()
	v, err := read(dec)
	if err != nil {
		return nil, fmt.Errorf("read JSON: %w", err)
	}
	if v, err = form("", v, keys); err != nil {
		return nil, err
	}
	var flat, out bytes.Buffer
	if err := write(&flat, v); err != nil {
		return nil, err
	}
	if err := json.Indent(&out, flat.Bytes(), "", "  "); err != nil {
		return nil, err
	}
	return append(out.Bytes(), '\n'), nil
}

// Of encodes v, and brings it into the form.
func Of(v any, keys Keys) ([]byte, error) {
	doc, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return Form(doc, keys)
}

func read(dec *json.Decoder) (any, error) {
	t, err := dec.Token()
	if err != nil {
		return nil, err
	}
	switch t {
	case json.Delim('{'):
		out := object{}
		for dec.More() {
			name, err := dec.Token()
			if err != nil {
				return nil, err
			}
			v, err := read(dec)
			if err != nil {
				return nil, err
			}
			out = append(out, member{name.(string), v}) // what stands before a colon is a string
		}
		_, err = dec.Token()
		return out, err
	case json.Delim('['):
		out := list{}
		for dec.More() {
			v, err := read(dec)
			if err != nil {
				return nil, err
			}
			out = append(out, v)
		}
		_, err = dec.Token()
		return out, err
	}
	return t, nil
}

// form brings the value of a member into the form.
func form(name string, v any, keys Keys) (any, error) {
	switch v := v.(type) {
	case object:
		out := make(object, 0, len(v))
		for _, m := range v {
			more, err := formMember(m, keys)
			if err != nil {
				return nil, err
			}
			out = append(out, more...)
		}
		return out, nil
	case list:
		for i := range v {
			if n, ok := v[i].(json.Number); ok && isID(name, true) {
				v[i] = n.String()
				continue
			}
			var err error
			if v[i], err = form("", v[i], keys); err != nil {
				return nil, err
			}
		}
		return v, nil
	case json.Number:
		if isID(name, false) {
			return v.String(), nil
		}
	case nil:
		if slices.Contains(listNames, name) {
			return list{}, nil
		}
	}
	return v, nil
}

func isID(name string, inList bool) bool {
	if strings.HasSuffix(name, "_id") || strings.HasSuffix(name, "_ts") ||
		strings.HasSuffix(name, "_safe_point") {
		return true
	}
	return slices.Contains(idNames, name) && (inList || !slices.Contains(countNames, name))
}

// formMember returns what takes the place of a member.
func formMember(m member, keys Keys) ([]member, error) {
	if keys != Done && slices.Contains(keyNames, m.name) {
		switch v := m.value.(type) {
		case string:
			return keyMembers(m.name, v, keys)
		case nil:
			return keyMembers(m.name, "", keys)
		}
	}
	if n, ok := m.value.(json.Number); ok {
		if out, ok := formNumber(m.name, n); ok {
			return []member{out}, nil
		}
	}
	v, err := form(m.name, m.value, keys)
	return []member{{m.name, v}}, err
}

func keyMembers(name, text string, keys Keys) ([]member, error) {
	decode := hex.DecodeString
	if keys == Base64 {
		decode = base64.StdEncoding.DecodeString
	}
	b, err := decode(text)
	if err != nil {
		return nil, fmt.Errorf("%s is not a key: %w", name, err)
	}
	var out []member
	if s := Text(b); s != nil {
		out = append(out, member{name, *s})
	}
	return append(out, member{name + "_hex", hex.EncodeToString(b)}), nil
}

// formNumber changes the unit of a number, if its name says that it has another one.
func formNumber(name string, n json.Number) (member, bool) {
	if stem, ok := strings.CutSuffix(name, "_unix_ms"); ok {
		if ms, err := n.Int64(); err == nil {
			return member{stem, time.UnixMilli(ms).UTC().Format(time.RFC3339Nano)}, true
		}
	}
	to := ""
	if stem, ok := strings.CutSuffix(name, "_mib"); ok {
		to = stem + "_bytes"
	} else if name == "mib_per_second" {
		to = "bytes_per_second"
	}
	mib, err := n.Float64()
	if to == "" || err != nil {
		return member{}, false
	}
	size := strconv.FormatFloat(math.Round(mib*(1<<20)), 'f', -1, 64)
	return member{to, json.Number(size)}, true
}

func write(w *bytes.Buffer, v any) error {
	switch v := v.(type) {
	case object:
		w.WriteByte('{')
		for i, m := range v {
			if i > 0 {
				w.WriteByte(',')
			}
			if err := scalar(w, m.name); err != nil {
				return err
			}
			w.WriteByte(':')
			if err := write(w, m.value); err != nil {
				return err
			}
		}
		w.WriteByte('}')
		return nil
	case list:
		w.WriteByte('[')
		for i, e := range v {
			if i > 0 {
				w.WriteByte(',')
			}
			if err := write(w, e); err != nil {
				return err
			}
		}
		w.WriteByte(']')
		return nil
	}
	return scalar(w, v)
}

func scalar(w *bytes.Buffer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	w.Truncate(w.Len() - 1) // without the newline
	return nil
}
