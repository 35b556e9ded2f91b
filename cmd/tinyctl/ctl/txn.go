package ctl

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/tinykv/tinykv/kv/client/txn"
)

// txnCmd has the commands for clusters of transactions. Each is one transaction.
func (a *app) txnCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "txn", Short: "Read and write keys of a cluster in mode txn, each command as one transaction"}
	cmd.AddCommand(a.txnGetCmd(), a.txnPutCmd(), a.txnDeleteCmd(), a.txnScanCmd())
	for _, c := range cmd.Commands() {
		c.Flags().StringVarP(&a.encoding, "encoding", "e", "text", "form of keys and values: text, hex or escaped")
	}
	return cmd
}

// transact runs f in a transaction, again if it meets others.
func (a *app) transact(cmd *cobra.Command, f func(t *txn.Txn) error) error {
	c, err := a.open(cmd.Context())
	if err != nil {
		return err
	}
	defer c.Close()
	t := txn.New(c, c.Placement())
	defer t.Close()
	return t.Run(cmd.Context(), f)
}

// showPairs prints pairs as a table, or as JSON.
func (a *app) showPairs(kvs []txn.KV) error {
	if a.output == "json" {
		out := make([]pairJSON, len(kvs))
		for i, kv := range kvs {
			out[i] = pairJSON{Key: encode(a.encoding, kv.Key), Value: encode(a.encoding, kv.Value)}
		}
		return a.json(out)
	}
	for _, kv := range kvs {
		fmt.Fprintf(a.stdout, "%s\t%s\n", encode(a.encoding, kv.Key), encode(a.encoding, kv.Value))
	}
	return nil
}

func (a *app) txnGetCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "get KEY...", Short: "Print those of the keys that exist, as of one moment; exit code 1 if one is missing", Args: args(cobra.MinimumNArgs(1))}
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		keys, err := a.decodeAll(argv)
		if err != nil {
			return err
		}
		var found []txn.KV
		err = a.transact(cmd, func(t *txn.Txn) error {
			values, err := t.BatchGet(cmd.Context(), keys)
			found = nil
			for _, k := range keys {
				if v, ok := values[string(k)]; ok {
					found = append(found, txn.KV{Key: k, Value: v})
				}
			}
			return err
		})
		if err == nil {
			err = a.showPairs(found)
		}
		if err == nil && len(found) < len(keys) {
			err = errSilent
		}
		return err
	}
	return cmd
}

func (a *app) txnPutCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "put KEY VALUE [KEY VALUE]...", Short: "Set keys, all or none", Args: args(cobra.MinimumNArgs(2))}
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		if len(argv)%2 != 0 {
			return usagef("key %s has no value", argv[len(argv)-1])
		}
		words, err := a.decodeAll(argv)
		if err != nil {
			return err
		}
		return a.transact(cmd, func(t *txn.Txn) error {
			for i := 0; i < len(words); i += 2 {
				t.Set(words[i], words[i+1])
			}
			return nil
		})
	}
	return cmd
}

func (a *app) txnDeleteCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "delete KEY...", Aliases: []string{"del"}, Short: "Remove keys, all or none", Args: args(cobra.MinimumNArgs(1))}
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		keys, err := a.decodeAll(argv)
		if err != nil {
			return err
		}
		return a.transact(cmd, func(t *txn.Txn) error {
			for _, k := range keys {
				t.Delete(k)
			}
			return nil
		})
	}
	return cmd
}

func (a *app) txnScanCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "scan [START [END]]", Short: "Print the pairs of [START, END) in order, as of one moment", Args: args(cobra.MaximumNArgs(2))}
	limit := cmd.Flags().IntP("limit", "n", 100, "at most so many pairs; 0 for all")
	cmd.RunE = func(cmd *cobra.Command, argv []string) error {
		bounds, err := a.decodeAll(append(argv, "", "")[:2])
		if err != nil {
			return err
		}
		if len(bounds[1]) == 0 {
			bounds[1] = nil
		}
		var kvs []txn.KV
		err = a.transact(cmd, func(t *txn.Txn) (err error) {
			kvs, err = t.Scan(cmd.Context(), bounds[0], bounds[1], *limit)
			return err
		})
		if err != nil {
			return err
		}
		return a.showPairs(kvs)
	}
	return cmd
}
