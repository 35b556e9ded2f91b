package ctl

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/tinykv/tinykv/kv/client"
)

func (a *app) deleteCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "delete KEY... | --range START [END] | --prefix PREFIX", Aliases: []string{"del"},
		Short: "Remove keys: those given, or all of a range; END is exclusive, none is the end of all keys",
	}
	a.keyFlags(cmd)
	f := cmd.Flags()
	byRange := f.Bool("range", false, "remove all keys of [START, END)")
	prefix := f.String("prefix", "", "remove all keys that begin with this")
	yes := f.Bool("yes", false, "do not ask before a range is removed")
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		byPrefix := cmd.Flags().Changed("prefix")
		switch {
		case *byRange && byPrefix:
			return usagef("--range and --prefix exclude each other")
		case (*byRange || byPrefix) && a.output == "json" && !*yes:
			return usagef("--output json does not ask: give --yes")
		case *byRange && (len(argv) < 1 || len(argv) > 2):
			return usagef("--range needs START and, unless all keys behind it are meant, END")
		case byPrefix && (len(argv) > 0 || *prefix == ""):
			return usagef("--prefix needs a prefix and no keys; --range \"\" removes all keys")
		case !*byRange && !byPrefix && len(argv) == 0:
			return usagef("at least one key is needed; usage: %s", cmd.UseLine())
		}
		keys, err := a.decodeAll(argv)
		if err != nil {
			return err
		}
		c, err := a.open(cmd.Context())
		if err != nil {
			return err
		}
		defer c.Close()
		switch {
		case *byRange:
			return a.deleteRange(cmd.Context(), c, keys[0], append(keys, nil)[1], *yes)
		case byPrefix:
			start, err := decode(a.encoding, *prefix)
			if err != nil {
				return err
			}
			return a.deleteRange(cmd.Context(), c, start, prefixEnd(start), *yes)
		}
		for i, key := range keys {
			if err := c.Delete(cmd.Context(), key); err != nil {
				return fmt.Errorf("delete %s: %w", argv[i], err)
			}
		}
		return changedKeys(a, keys)
	}
	return cmd
}

func (a *app) decodeAll(argv []string) ([][]byte, error) {
	var out [][]byte
	for _, arg := range argv {
		b, err := decode(a.encoding, arg)
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// deleteRange counts, asks, and removes. What comes into the range between the count and the answer
// goes too.
func (a *app) deleteRange(
	ctx context.Context, c *client.Client, start, end []byte, yes bool,
) error {
	n, err := c.Count(ctx, start, end)
	if err != nil {
		return err
	}
	if n > 0 && !yes {
		until := "the end of all keys"
		if len(end) > 0 {
			until = fmt.Sprintf("%q", encode(a.encoding, end))
		}
		if !a.confirm(fmt.Sprintf("There are %d keys from %q to %s. Remove them all?", n,
			encode(a.encoding, start), until)) {
			return errors.New("nothing was removed")
		}
	}
	if err := c.DeleteRange(ctx, start, end); err != nil {
		return fmt.Errorf("a part of the range may be removed: %w", err)
	}
	if a.output == "json" {
		return a.json(deletedRangeJSON{rangeOf(start, end), n})
	}
	fmt.Fprintf(a.stdout, "removed the range; it had %d keys\n", n)
	return nil
}

// deletedRangeJSON is what delete of a range answers: Counted keys were in it before.
type deletedRangeJSON struct {
	rangeJSON
	Counted int `json:"counted"`
}

// changedKeys ends a change of keys that shows nothing but in JSON.
func changedKeys(a *app, keys [][]byte) error {
	if a.output != "json" {
		return nil
	}
	out := make([]keyJSON, 0, len(keys))
	for _, k := range keys {
		out = append(out, keyOf(k))
	}
	return a.json(map[string]any{"keys": out})
}

// casJSON has what the key had before; without a value it did not exist.
type casJSON struct {
	Swapped     bool    `json:"swapped"`
	Existed     bool    `json:"existed"`
	Previous    *string `json:"previous,omitempty"`
	PreviousHex *string `json:"previous_hex,omitempty"`
}

func (a *app) casCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "cas KEY [EXPECTED] [VALUE]",
		Short: "Set a key if it has the expected value, and print what it had; exit code 1 if it was not set. " +
			"Without EXPECTED (--absent) the key must not exist; without VALUE (--delete) it is removed",
		Args: args(cobra.RangeArgs(2, 3)),
	}
	a.keyFlags(cmd)
	absent := cmd.Flags().Bool("absent", false, "the key must not exist: cas --absent KEY VALUE")
	remove := cmd.Flags().Bool("delete", false, "remove the key: cas --delete KEY EXPECTED")
	ttl := ttlFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		want := 3
		if *absent || *remove {
			want = 2
		}
		if *absent && *remove || len(argv) != want {
			return usagef(
				"give KEY EXPECTED VALUE, or --absent KEY VALUE, or --delete KEY EXPECTED")
		}
		if *remove && *ttl != 0 {
			return usagef("--delete and --ttl exclude each other")
		}
		seconds, err := wholeSeconds(*ttl)
		if err != nil {
			return err
		}
		words, err := a.decodeAll(argv)
		if err != nil {
			return err
		}
		var expected, value []byte
		if !*absent {
			expected = append([]byte{}, words[1]...)
		}
		if !*remove {
			value = append([]byte{}, words[len(words)-1]...)
		}
		c, err := a.open(cmd.Context())
		if err != nil {
			return err
		}
		defer c.Close()
		previous, swapped, err := c.CompareAndSwapTTL(cmd.Context(), words[0], expected, value,
			seconds)
		if err != nil {
			return err
		}
		return a.showSwap(argv[0], previous, swapped)
	}
	return cmd
}

func (a *app) showSwap(key string, previous []byte, swapped bool) error {
	if a.output == "json" {
		out := casJSON{Swapped: swapped, Existed: previous != nil}
		if previous != nil {
			v := valueOf(previous)
			out.Previous, out.PreviousHex = v.Value, v.ValueHex
		}
		if err := a.json(out); err != nil || swapped {
			return err
		}
		return errSilent
	}
	switch {
	case swapped:
		return nil
	case previous == nil:
		return fmt.Errorf("not set: key %s does not exist", key)
	}
	return fmt.Errorf("not set: key %s has the value %s", key, encode(a.encoding, previous))
}

// ttlFlag says how long a value lives.
func ttlFlag(cmd *cobra.Command) *time.Duration {
	return cmd.Flags().Duration("ttl", 0,
		"how long the key lives, such as 90s or 24h, in whole seconds; 0 for ever")
}

func wholeSeconds(ttl time.Duration) (uint64, error) {
	if ttl < 0 || ttl%time.Second != 0 {
		return 0, usagef("--ttl %s: a time in whole seconds is needed", ttl)
	}
	return uint64(ttl / time.Second), nil
}

type ttlJSON struct {
	keyJSON
	Found bool `json:"found"`
	// Seconds are what the key has left, 0 if it does not expire.
	Seconds uint64 `json:"ttl_seconds"`
}

func ttlCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "ttl KEY", Args: args(cobra.ExactArgs(1)),
		Short: "Print how many seconds a key has left, or never; exit code 4 if there is no such key",
	}
	a.keyFlags(cmd)
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
		seconds, found, err := c.TTL(cmd.Context(), key)
		switch {
		case err != nil:
			return err
		case a.output == "json":
			if err := a.json(ttlJSON{keyOf(key), found, seconds}); err != nil || found {
				return err
			}
			return errNotFound
		case !found:
			return notFoundf("key %s does not exist", argv[0])
		case seconds == 0:
			fmt.Fprintln(a.stdout, "never")
		default:
			fmt.Fprintln(a.stdout, seconds)
		}
		return nil
	}
	return cmd
}

type checksumJSON struct {
	Checksum string `json:"checksum"`
	Pairs    uint64 `json:"pairs"`
	Bytes    uint64 `json:"bytes"`
}

// countCmd counts the pairs of a range.
func countCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "count [START [END]]", Short: "Count the pairs of [START, END)"}
	return sumUp(a, cmd, func(sum client.Sum) error {
		if a.output == "json" {
			return a.json(map[string]uint64{"pairs": sum.Pairs, "bytes": sum.Bytes})
		}
		_, err := fmt.Fprintln(a.stdout, sum.Pairs)
		return err
	})
}

func checksumCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "checksum [START [END]]",
		Short: "Sum up the pairs of [START, END): the CRC-64/XZ of each key and value, exclusive or; " +
			"how many; their bytes",
	}
	return sumUp(a, cmd, func(sum client.Sum) error {
		out := checksumJSON{
			Checksum: fmt.Sprintf("%016x", sum.Checksum), Pairs: sum.Pairs, Bytes: sum.Bytes,
		}
		if a.output == "json" {
			return a.json(out)
		}
		_, err := fmt.Fprintf(a.stdout, "%s, %d pairs, %d bytes\n",
			out.Checksum, out.Pairs, out.Bytes)
		return err
	})
}

// sumUp completes a command that shows what the stores say of a range: its pairs are not sent.
func sumUp(a *app, cmd *cobra.Command, show func(sum client.Sum) error) *cobra.Command {
	cmd.Args = args(cobra.MaximumNArgs(2))
	a.keyFlags(cmd)
	prefix := cmd.Flags().String("prefix", "", "only keys that begin with this")
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		if *prefix != "" && len(argv) > 0 {
			return usagef("--prefix and START exclude each other")
		}
		bounds, err := a.decodeAll(argv)
		if err != nil {
			return err
		}
		if *prefix != "" {
			start, err := decode(a.encoding, *prefix)
			if err != nil {
				return err
			}
			bounds = [][]byte{start, prefixEnd(start)}
		}
		bounds = append(bounds, nil, nil)
		c, err := a.open(cmd.Context())
		if err != nil {
			return err
		}
		defer c.Close()
		sum, err := c.Checksum(cmd.Context(), bounds[0], bounds[1])
		if err != nil {
			return err
		}
		return show(sum)
	}
	return cmd
}
