package client

import (
	"context"

	"github.com/tinykv/tinykv/proto/pkg/kvrpcpb"
)

// Setting is an option of a store, by the name that it has in the store's configuration file, with
// the value in force. One that needs a restart changes with that file only.
type Setting struct {
	Name, Value, Default string
	NeedsRestart         bool
}

// StoreSettings lists the settings of a store. With TLS it takes a certificate of an admin;
// without, only stores on the caller's machine answer. Errors are those of gRPC.
func (c *Client) StoreSettings(ctx context.Context, storeID uint64) ([]Setting, error) {
	return c.askSettings(ctx, storeID, &kvrpcpb.StoreSettingsRequest{})
}

// SetStoreSetting changes a setting of a store until the store starts again, and returns it. The
// codes of errors are NotFound for a setting that does not exist, FailedPrecondition for one that
// needs a restart, InvalidArgument for a value that does not fit, and those of StoreSettings.
func (c *Client) SetStoreSetting(
	ctx context.Context, storeID uint64, name, value string,
) (Setting, error) {
	got, err := c.askSettings(ctx, storeID,
		&kvrpcpb.StoreSettingsRequest{Name: name, Value: value})
	if err != nil || len(got) == 0 {
		return Setting{}, err
	}
	return got[0], nil
}

func (c *Client) askSettings(
	ctx context.Context, storeID uint64, req *kvrpcpb.StoreSettingsRequest,
) ([]Setting, error) {
	ctx, cancel := c.bound(ctx, c.opts.AttemptTimeout)
	defer cancel()
	s, err := c.pool.stub(ctx, storeID)
	if err != nil {
		return nil, err
	}
	resp, err := s.StoreSettings(ctx, req)
	if err != nil {
		return nil, err
	}
	out := make([]Setting, 0, len(resp.Settings))
	for _, one := range resp.Settings {
		out = append(out, Setting{one.Name, one.Value, one.DefaultValue, one.NeedsRestart})
	}
	return out, nil
}
