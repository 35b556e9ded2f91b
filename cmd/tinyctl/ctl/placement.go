package ctl

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/tinykv/tinykv/cmd/tinyctl/contract"
	"github.com/tinykv/tinykv/pkg/security"
)

// tokenEnv holds the token that changes need, when --token is not given. It is no default of the
// flag: the help text would print it.
const tokenEnv = "TINYCTL_TOKEN"

// retryPause is how long to wait before members that have no leader are asked again.
const retryPause = 200 * time.Millisecond

// apiFailure is an answer of the placement service that is an error.
type apiFailure struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Detail  string `json:"detail"`
	status  int
}

func (e *apiFailure) Error() string {
	text := e.Message
	if e.Detail != "" {
		text += ": " + e.Detail
	}
	if e.Code == "unauthorized" {
		text += " (set --token or " + tokenEnv + ")"
	}
	return text
}

// command builds a command with a fixed number of arguments, which are the upper-case words of use.
func command(use, short string, run func(cmd *cobra.Command, argv []string) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: args(cobra.ExactArgs(len(strings.Fields(use)) - 1)),
		RunE: run,
	}
}

// group is a command that only has subcommands. Without the check cobra answers a misspelt one with
// help and success.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs, RunE: runGroup}
	cmd.AddCommand(subs...)
	return cmd
}

func runGroup(cmd *cobra.Command, argv []string) error {
	if len(argv) == 0 {
		return cmd.Help()
	}
	return usagef("unknown command %q for %q; see %s --help", argv[0], cmd.CommandPath(),
		cmd.CommandPath())
}

func number(text, what string) (uint64, error) {
	id, err := strconv.ParseUint(text, 10, 64)
	if err != nil || id == 0 {
		return 0, usagef("%q is not a %s id", text, what)
	}
	return id, nil
}

// ask makes a request of the placement service and decodes the answer into into; it returns the
// answer as it came.
func (a *app) ask(ctx context.Context, method, path string, body, into any) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	resp, err := a.reach(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("read the answer of the placement service: %w", err)
	}
	if into == nil {
		return data, nil
	}
	if err := json.Unmarshal(data, into); err != nil {
		return nil,
			fmt.Errorf("the placement service answers %s with something else than expected: %w",
				path, err)
	}
	return data, nil
}

// show asks, then prints the API's JSON or the table.
func (a *app) show(
	cmd *cobra.Command, method, path string, body, into any, table func() error,
) error {
	data, err := a.ask(cmd.Context(), method, path, body, into)
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.raw(data)
	}
	return table()
}

// raw prints an answer of the API in the form of package contract.
func (a *app) raw(data []byte) error {
	if len(bytes.TrimSpace(data)) == 0 {
		data = []byte("{}") // nothing but success
	}
	doc, err := contract.Form(data, contract.Hex)
	if err != nil {
		return err
	}
	_, err = a.stdout.Write(doc)
	return err
}

// reach tries the members in turn until one answers with a result or with an error of its own.
// Members that cannot be dialled or know no leader have done nothing, so that even changes may be
// tried elsewhere.
func (a *app) reach(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	secure, err := a.secure()
	if err != nil {
		return nil, err
	}
	id, err := identityOf(a)
	if err != nil {
		return nil, err
	}
	scheme := "http://"
	if secure != nil {
		scheme = "https://"
	}
	transport := &http.Transport{
		DialContext: (&net.Dialer{Timeout: 2 * time.Second}).DialContext, DisableKeepAlives: true,
		TLSClientConfig: secure,
	}
	if method == http.MethodGet {
		transport.ResponseHeaderTimeout = connectTimeout // a member that hangs; another one may not
	}
	client := &http.Client{Transport: transport}
	var said error // the last answer of a member
	for deadline := time.Now().Add(connectTimeout); ; {
		var failure error
		waits := false
		for _, addr := range a.endpoints() {
			resp, err := a.request(ctx, client, scheme, method, addr, path, data)
			if err == nil {
				return resp, nil
			}
			err = id.Explain(err)
			if !mayRetry(method, err) {
				return nil, err
			}
			var api *apiFailure
			if errors.As(err, &api) {
				waits, failure, said = true, err, err
			}
			failure = cmp.Or(failure,
				fmt.Errorf("no placement service answers at %s (set --scheduler or %s): %w",
					a.scheduler, schedulerEnv, err))
		}
		if ctx.Err() != nil {
			return nil, cmp.Or(said, failure)
		}
		if !waits || time.Now().After(deadline) {
			return nil, failure
		}
		time.Sleep(retryPause) // an election takes a moment
	}
}

// mayRetry tells whether another member may be asked after err: always for reads that got no
// answer, for changes only if certainly nothing was done.
func mayRetry(method string, err error) bool {
	var api *apiFailure
	var dial *net.OpError
	var usage *usageError
	switch read := method == http.MethodGet; {
	case errors.As(err, &usage):
		return false
	case errors.As(err, &api):
		return api.status == http.StatusServiceUnavailable ||
			read && api.status == http.StatusBadGateway
	case errors.As(err, &dial) && dial.Op == "dial":
		return true
	default:
		return read
	}
}

func (a *app) request(
	ctx context.Context, client *http.Client, scheme, method, addr, path string, body []byte,
) (*http.Response, error) {
	if addr = strings.TrimSpace(addr); !strings.Contains(addr, "://") {
		addr = scheme + addr
	}
	req, err := http.NewRequestWithContext(ctx, method,
		strings.TrimRight(strings.TrimSpace(addr), "/")+"/api/v1"+path, bytes.NewReader(body))
	if err != nil {
		return nil, usagef("--scheduler: %q is not an address", addr)
	}
	if method != http.MethodGet {
		req.Header.Set(security.ProofHeader, "1")
	}
	if token := cmp.Or(a.token, os.Getenv(tokenEnv)); token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // without the URL
		}
		return nil, fmt.Errorf("%s: %w", req.URL.Host, err)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	failure := &apiFailure{status: resp.StatusCode}
	data, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if json.Unmarshal(data, failure) != nil || failure.Message == "" {
		return nil,
			fmt.Errorf("%s answers %s to %s: it is not a placement service", addr, resp.Status,
				path)
	}
	return nil, failure
}

// Cells of tables.

func id(n uint64) string { return strconv.FormatUint(n, 10) }

func mib[T int64 | float64](n T) string {
	return humanize.IBytes(uint64(max(float64(n), 0) * (1 << 20)))
}

func seconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	if d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(100 * time.Millisecond).String()
}

// shownKey is a key of the API, which are hexadecimal, as the other commands show keys.
func shownKey(text, empty string) string {
	key, err := hex.DecodeString(text)
	if err != nil {
		return text
	}
	return shorten(encode("text", key), empty)
}
