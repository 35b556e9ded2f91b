package ctl

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/tinykv/tinykv/cmd/tinyctl/contract"
	"github.com/tinykv/tinykv/cmd/tinyctl/timeline"
	"github.com/tinykv/tinykv/kv/client"
)

// Keys and values are given and shown in one of three forms:
//
//	text      as they are; what is not printable UTF-8 is shown as in escaped
//	hex       two digits a byte
//	escaped   Go's string escapes without the quotes: \x00 \n \\
func decode(encoding, s string) ([]byte, error) {
	switch encoding {
	case "text":
		return []byte(s), nil
	case "hex":
		b, err := hex.DecodeString(s)
		if err != nil {
			return nil, usagef("%q is not hex", s)
		}
		return b, nil
	case "escaped":
		out, err := strconv.Unquote(`"` + strings.ReplaceAll(s, `"`, `\"`) + `"`)
		if err != nil {
			return nil, usagef("%q is not an escaped string", s)
		}
		return []byte(out), nil
	}
	return nil, usagef("--encoding %q is none of text, hex, escaped", encoding)
}

func encode(encoding string, b []byte) string {
	switch encoding {
	case "hex":
		return hex.EncodeToString(b)
	case "text":
		if printable(b) {
			return string(b)
		}
	}
	q := strconv.Quote(string(b))
	return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
}

func printable(b []byte) bool {
	if !utf8.Valid(b) {
		return false
	}
	for _, r := range string(b) {
		if !strconv.IsPrint(r) {
			return false
		}
	}
	return true
}

func (a *app) keyFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.cf, "cf", "", "column family: default, write or lock")
	cmd.Flags().StringVarP(&a.encoding, "encoding", "e", "text",
		"form of keys and values: text, hex or escaped")
}

// keyJSON is a key: see package contract.
type keyJSON struct {
	Key    *string `json:"key,omitempty"`
	KeyHex string  `json:"key_hex"`
}

func keyOf(key []byte) keyJSON {
	return keyJSON{contract.Text(key), hex.EncodeToString(key)}
}

// valueJSON is a value: see package contract. Without one it has no members.
type valueJSON struct {
	Value    *string `json:"value,omitempty"`
	ValueHex *string `json:"value_hex,omitempty"`
}

func valueOf(value []byte) valueJSON {
	digits := hex.EncodeToString(value)
	return valueJSON{contract.Text(value), &digits}
}

// pairJSON is a key, and its value if that is known.
type pairJSON struct {
	keyJSON
	valueJSON
	Found *bool `json:"found,omitempty"`
}

// wroteJSON is what put answers.
type wroteJSON struct {
	keyJSON
	ValueBytes int    `json:"value_bytes"`
	TTL        uint64 `json:"ttl_seconds"`
}

func (a *app) getCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "get KEY", Short: "Print the value of a key; exit code 4 if there is none",
		Args: args(cobra.ExactArgs(1)),
	}
	a.keyFlags(cmd)
	raw := cmd.Flags().Bool("raw", false, "write the value's bytes and nothing else")
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		key, err := decode(a.encoding, argv[0])
		if err != nil {
			return err
		}
		c, err := a.open(cmd.Context())
		if err != nil {
			return err
		}
		defer c.Close()
		value, found, err := c.Get(cmd.Context(), key)
		if err != nil {
			return err
		}
		if a.output == "json" {
			p := pairJSON{keyJSON: keyOf(key), Found: &found}
			if found {
				p.valueJSON = valueOf(value)
			}
			if err := a.json(p); err != nil {
				return err
			}
			if !found {
				return errNotFound
			}
			return nil
		}
		if !found {
			return notFoundf("key %s does not exist", argv[0])
		}
		if *raw {
			_, err = a.stdout.Write(value)
			return err
		}
		fmt.Fprintln(a.stdout, encode(a.encoding, value))
		return nil
	}
	return cmd
}

func (a *app) putCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "put KEY VALUE", Short: "Set a key; VALUE - reads the value from standard input",
		Args: args(cobra.ExactArgs(2)),
	}
	a.keyFlags(cmd)
	ttl := ttlFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		seconds, err := wholeSeconds(*ttl)
		if err != nil {
			return err
		}
		key, err := decode(a.encoding, argv[0])
		if err != nil {
			return err
		}
		var value []byte
		if argv[1] == "-" {
			value, err = io.ReadAll(a.stdin)
		} else {
			value, err = decode(a.encoding, argv[1])
		}
		if err != nil {
			return err
		}
		c, err := a.open(cmd.Context())
		if err != nil {
			return err
		}
		defer c.Close()
		err = c.PutTTL(cmd.Context(), key, value, seconds)
		if err != nil || a.output != "json" {
			return err
		}
		return a.json(wroteJSON{keyOf(key), len(value), seconds})
	}
	return cmd
}

// pairWriter prints pairs as they come.
type pairWriter struct {
	w              *bufio.Writer
	json, keysOnly bool
	encoding       string
	n              int
}

// add prints a pair. A write that fails shows in Flush.
func (w *pairWriter) add(kv client.KV) {
	w.n++
	key := encode(w.encoding, kv.Key)
	switch {
	case w.json:
		p := pairJSON{keyJSON: keyOf(kv.Key)}
		if !w.keysOnly {
			p.valueJSON = valueOf(kv.Value)
		}
		line, err := json.Marshal(p)
		if err != nil {
			panic(fmt.Sprintf("tinyctl: a pair as JSON: %v", err)) // texts can be encoded
		}
		separator := ",\n  "
		if w.n == 1 {
			separator = "[\n  "
		}
		_, _ = w.w.WriteString(separator + string(line))
	case w.keysOnly:
		_, _ = fmt.Fprintln(w.w, key)
	default:
		_, _ = fmt.Fprintf(w.w, "%s\t%s\n", key, encode(w.encoding, kv.Value))
	}
}

// end closes the list.
func (w *pairWriter) end() error {
	if w.json && w.n == 0 {
		_, _ = w.w.WriteString("[]\n")
	} else if w.json {
		_, _ = w.w.WriteString("\n]\n")
	}
	return w.w.Flush()
}

func (a *app) scanCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "scan [START [END]]", Short: "Print the pairs of [START, END) in order",
		Args: args(cobra.MaximumNArgs(2)),
	}
	a.keyFlags(cmd)
	limit := cmd.Flags().IntP("limit", "n", 100, "at most so many pairs; 0 for all")
	keysOnly := cmd.Flags().Bool("keys-only", false, "print keys without values")
	reverse := cmd.Flags().Bool("reverse", false, "begin with the last pair of the range")
	prefix := cmd.Flags().String("prefix", "", "only keys that begin with this")
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		var start, end []byte
		var err error
		if len(argv) > 0 {
			if start, err = decode(a.encoding, argv[0]); err != nil {
				return err
			}
		}
		if len(argv) > 1 {
			if end, err = decode(a.encoding, argv[1]); err != nil {
				return err
			}
		}
		if *prefix != "" {
			if len(argv) > 0 {
				return usagef("--prefix and START exclude each other")
			}
			if start, err = decode(a.encoding, *prefix); err != nil {
				return err
			}
			end = prefixEnd(start)
		}
		c, err := a.open(cmd.Context())
		if err != nil {
			return err
		}
		defer c.Close()
		if *limit < 0 {
			return usagef("--limit %d is negative; 0 is for all", *limit)
		}
		out := pairWriter{
			w: bufio.NewWriter(a.stdout), json: a.output == "json", encoding: a.encoding,
			keysOnly: *keysOnly,
		}
		o := client.ScanOptions{Limit: *limit, Reverse: *reverse, KeysOnly: *keysOnly}
		if o.Limit > 0 {
			o.Limit++ // to see whether there are more
		}
		more := false
		err = c.ScanPages(cmd.Context(), start, end, o, func(page []client.KV) error {
			for _, kv := range page {
				if more = *limit > 0 && out.n == *limit; more {
					break
				}
				out.add(kv)
			}
			return out.w.Flush()
		})
		if err = errors.Join(err, out.end()); err == nil && more {
			fmt.Fprintf(a.stderr,
				"tinyctl: these are the first %d pairs, there are more: --limit\n", *limit)
		}
		return err
	}
	return cmd
}

// prefixEnd is the end of the range of keys that begin with p; nil if that is unbounded.
func prefixEnd(p []byte) []byte {
	for i := len(p) - 1; i >= 0; i-- {
		if p[i] != 0xff {
			end := append([]byte{}, p[:i+1]...)
			end[i]++
			return end
		}
	}
	return nil
}

// traceCmd runs a command on keys and shows where its time went.
func traceCmd(a *app) *cobra.Command {
	cmds := []*cobra.Command{a.getCmd(), a.putCmd(), a.casCmd(), a.deleteCmd(), a.scanCmd()}
	for _, sub := range cmds {
		run := sub.RunE
		sub.RunE = func(sub *cobra.Command, argv []string) error {
			ctx, t := client.WithTrace(sub.Context())
			sub.SetContext(ctx)
			out := a.stdout
			if a.output == "json" {
				a.stdout = io.Discard // what is printed is the trace
			}
			began := time.Now()
			err := run(sub, argv)
			a.stdout = out
			steps := t.Steps()
			if len(steps) > 0 {
				began = steps[0].Start // behind the connection to the placement service
			}
			lines := timeline.Of(began, steps)
			if a.output == "json" {
				return errors.Join(err, a.json(struct {
					Steps []timeline.Line `json:"steps"`
				}{lines}))
			}
			return errors.Join(err, timeline.Write(a.stdout, lines))
		}
	}
	return group("trace", "Do what a command on keys does, and show where the time went", cmds...)
}
