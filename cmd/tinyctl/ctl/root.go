// Package ctl is the implementation of tinyctl: commands for keys, for importing and exporting
// trees of files, for looking at a cluster, and for running one on this machine.
package ctl

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/tinykv/tinykv/cmd/tinyctl/complete"
	"github.com/tinykv/tinykv/cmd/tinyctl/contract"
	"github.com/tinykv/tinykv/cmd/tinyctl/manpage"
	"github.com/tinykv/tinykv/cmd/tinyctl/shell"
	"github.com/tinykv/tinykv/kv/client"
	"github.com/tinykv/tinykv/pkg/cli"
	"github.com/tinykv/tinykv/pkg/security"
	placement "github.com/tinykv/tinykv/scheduler/client"
)

// Exit codes.
const (
	exitOK    = 0
	exitFail  = 1
	exitUsage = 2
	// exitUnknown: what was asked for is not known.
	exitUnknown = 3
	// exitNotFound: there is no such key, region, store, member or setting.
	exitNotFound = 4
)

// schedulerEnv names the cluster when --scheduler is not given, the others the files for one with
// TLS.
const (
	schedulerEnv = "TINYCTL_SCHEDULER"
	caEnv        = "TINYCTL_CA"
	certEnv      = "TINYCTL_CERT"
	keyEnv       = "TINYCTL_KEY"
)

// usageError is a wrong command line.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// errSilent ends with exit code 1 without another line: the reason was printed already.
var errSilent = errors.New("failed")

// app is what all commands share.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	scheduler string
	output    string
	timeout   time.Duration
	cf        string
	encoding  string
	token     string
	tls       security.Files
}

// errNotFound is errSilent for what does not exist.
var errNotFound = &codeError{exitNotFound, errSilent}

// notFoundf is the error of what does not exist.
func notFoundf(format string, args ...any) error {
	return &codeError{exitNotFound, fmt.Errorf(format, args...)}
}

// Main runs tinyctl and returns the exit code: 0 ok, 1 failed, 2 wrong usage, 3 cannot tell, 4 not
// found.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := checkHelp(args)
	if err == nil {
		err = root.ExecuteContext(ctx)
	}
	if err == nil {
		return exitOK
	}
	// What wraps it tells more, such as an unknown outcome.
	if err == context.Canceled { //nolint:errorlint // see above
		err = errors.New("interrupted")
	}
	if !errors.Is(err, errSilent) {
		fmt.Fprintf(stderr, "tinyctl: %s\n", strings.Join(strings.Fields(err.Error()), " "))
	}
	return exitCode(err)
}

// GeneratesLoad tells whether the arguments are those of a command that loads a cluster with
// requests.
func GeneratesLoad(args []string) bool {
	cmd, _, err := (&app{}).root().Find(args)
	for ; err == nil && cmd != nil; cmd = cmd.Parent() {
		if cmd.Name() == benchName {
			return true
		}
	}
	return false
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use: "tinyctl", Short: "Command line of a TinyKV cluster",
		SilenceUsage: true, SilenceErrors: true, Version: cli.Version,
	}
	root.SetVersionTemplate(cli.VersionText("tinyctl"))
	env := os.Getenv(schedulerEnv)
	if env == "" {
		env = "127.0.0.1:2379"
	}
	f := root.PersistentFlags()
	f.StringVarP(&a.scheduler, "scheduler", "s", env,
		"addresses of the placement service, [https://]host:port[,...]; environment "+schedulerEnv)
	f.StringVarP(&a.output, "output", "o", "table", "table or json")
	f.DurationVar(&a.timeout, "timeout", 20*time.Second, "how long one operation may take")
	f.StringVar(&a.token, "token", "",
		"token that changes need, if the placement service has one; environment "+tokenEnv)
	f.StringVar(&a.tls.CA, "ca", os.Getenv(caEnv),
		"file of the CA certificates of a cluster with TLS; environment "+caEnv)
	f.StringVar(&a.tls.Cert, "cert", os.Getenv(certEnv),
		"file of the certificate shown to it; environment "+certEnv)
	f.StringVar(&a.tls.Key, "key", os.Getenv(keyEnv),
		"file of the certificate's private key; environment "+keyEnv)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		if a.output != "table" && a.output != "json" {
			return usagef("--output %q is neither table nor json", a.output)
		}
		if _, err := a.secure(); err != nil {
			return usagef("--scheduler: %w", err)
		}
		return nil
	}
	root.AddCommand(a.getCmd(), a.putCmd(), a.casCmd(), a.deleteCmd(), a.scanCmd(), a.importCmd(),
		a.exportCmd(),
		a.statusCmd(), a.storeCmd(), a.regionCmd(), a.playgroundCmd(), a.demoCmd(), a.benchCmd())
	root.AddCommand(a.memberCmd(), a.operatorCmd(), a.schedulerCmd(), a.configCmd(), a.eventsCmd(),
		a.explainCmd(),
		a.recoverCmd(), a.debugCmd(), a.checkCmd(), a.certCmd(), a.doctorCmd(), a.txnCmd(),
		a.mvccCmd(), a.lockCmd(), a.gcCmd(), keyspaceCmd(a), ttlCmd(a), checksumCmd(a), countCmd(a),
		traceCmd(a), topCmd(a), shellCmd(a), manCmd(a))
	root.SetHelpCommand(helpCmd())
	checkGroups(root)
	complete.Add(root, func(ctx context.Context, path string, into any) error {
		_, err := a.ask(ctx, http.MethodGet, path, nil, into)
		return err
	}, defects)
	return root
}

// checkGroups makes a misspelt command below one that only has commands an error: cobra answers it
// with help and success.
func checkGroups(cmd *cobra.Command) {
	if cmd.HasParent() && cmd.HasSubCommands() && !cmd.Runnable() {
		cmd.Args, cmd.RunE = cobra.ArbitraryArgs, runGroup
	}
	for _, sub := range cmd.Commands() {
		checkGroups(sub)
	}
}

// helpCmd is cobra's, but for what it does about a command that does not exist.
func helpCmd() *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]...", Short: "Help about any command",
		RunE: func(cmd *cobra.Command, argv []string) error {
			about, rest, err := cmd.Root().Find(argv)
			switch {
			case err != nil:
				return &usageError{err}
			case about.HasSubCommands() && len(rest) > 0:
				return runGroup(about, rest)
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}

// checkHelp is an error if the arguments ask for help about a command that does not exist: cobra
// shows the help of the group then.
func checkHelp(argv []string) error {
	cmd, rest, err := new(app).root().Find(argv)
	if err != nil || !cmd.HasParent() || !cmd.HasSubCommands() {
		return nil // cobra's own error, or a command
	}
	cmd.InitDefaultHelpFlag()
	if cmd.ParseFlags(rest) != nil || cmd.Flags().NArg() == 0 {
		return nil
	}
	if help, err := cmd.Flags().GetBool("help"); err != nil || !help {
		return nil
	}
	return runGroup(cmd, cmd.Flags().Args())
}

// manCmd prints the manual page, which the packages have.
func manCmd(a *app) *cobra.Command {
	cmd := command("man", "Print the manual page, for man -l -", nil)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if a.output == "json" {
			return usagef("the manual page has no JSON form")
		}
		return manpage.Write(a.stdout, cmd.Root(), cli.Version)
	}
	return cmd
}

// shellCmd runs commands line by line. Those of this command line's flags that all commands have
// hold for each of them.
func shellCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "shell", Args: args(cobra.NoArgs),
		Short: "Run commands line by line, at a terminal or as a script, which ends when one fails",
	}
	usual := ""
	if home, err := os.UserHomeDir(); err == nil {
		usual = filepath.Join(home, ".tinyctl_history")
	}
	history := cmd.Flags().String("history", usual, "file of former lines; empty: none")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var shared []string
		cmd.InheritedFlags().VisitAll(func(f *pflag.Flag) {
			if f.Changed {
				shared = append(shared, "--"+f.Name+"="+f.Value.String())
			}
		})
		stdin := a.stdin
		if !shell.IsTerminal(stdin) {
			stdin = noInput{}
		}
		code := shell.Run(shell.Options{
			Run: func(words []string) int {
				return Main(append(slices.Clone(shared), words...), stdin, a.stdout, a.stderr)
			},
			Complete: completions,
			In:       a.stdin, Out: a.stdout, Err: a.stderr, History: *history,
		})
		if code != exitOK {
			return &codeError{code, errSilent}
		}
		return nil
	}
	return cmd
}

// noInput is the input of commands in a script, which is the script's.
type noInput struct{}

func (noInput) Read([]byte) (int, error) {
	return 0, errors.New("the input is a script of commands, a command cannot read it")
}

// completions are what may follow words, each of which begins with partial.
func completions(words []string, partial string) []string {
	var out bytes.Buffer
	asked := append([]string{cobra.ShellCompNoDescRequestCmd}, append(words, partial)...)
	if Main(asked, strings.NewReader(""), &out, io.Discard) != exitOK {
		return nil
	}
	var found []string
	for line := range strings.Lines(out.String()) {
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(line, ":") {
			break // cobra's directive ends the list
		}
		if strings.HasPrefix(line, partial) {
			found = append(found, line)
		}
	}
	return found
}

// args makes a wrong number of arguments a usage error.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, given []string) error {
		if err := check(cmd, given); err != nil {
			return usagef("%w; usage: %s", err, cmd.UseLine())
		}
		return nil
	}
}

func (a *app) endpoints() []string { return strings.Split(a.scheduler, ",") }

// secure is how the placement service is reached, nil for without TLS.
func (a *app) secure() (*tls.Config, error) { return security.ClientTLS(a.endpoints(), a.tls) }

// connectTimeout bounds the wait for a placement service that does not answer.
const connectTimeout = 5 * time.Second

func (a *app) open(ctx context.Context) (*client.Client, error) {
	return a.openWith(ctx, client.Options{Timeout: a.timeout})
}

func (a *app) openWith(ctx context.Context, opts client.Options) (*client.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	var err error
	if opts.Identity, err = identityOf(a); err != nil {
		return nil, err
	}
	c, err := client.Open(ctx, a.endpoints(), opts)
	if err != nil {
		return nil,
			fmt.Errorf("no placement service answers at %s (set --scheduler or %s): %w",
				a.scheduler, schedulerEnv, err)
	}
	if a.cf != "" {
		return c.CF(a.cf), nil
	}
	return c, nil
}

// identityOf is a.secure with errors that name the files. It is nil without TLS.
func identityOf(a *app) (*security.Identity, error) {
	secure, err := a.secure()
	if secure == nil || err != nil {
		return nil, err
	}
	return security.LoadIdentity(a.tls, nil)
}

func (a *app) placement(ctx context.Context) (*placement.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	id, err := identityOf(a)
	if err != nil {
		return nil, err
	}
	var with []placement.Option
	if id != nil {
		with = append(with, placement.WithIdentity(id))
	}
	p, err := placement.New(ctx, a.endpoints(), with...)
	if err != nil {
		return nil,
			fmt.Errorf("no placement service answers at %s (set --scheduler or %s): %w",
				a.scheduler, schedulerEnv, err)
	}
	return p, nil
}

// json prints v in the form of package contract. Keys and values in it are there already as that
// form has them.
func (a *app) json(v any) error { return printJSON(a, v, contract.Done) }

func printJSON(a *app, v any, keys contract.Keys) error {
	doc, err := contract.Of(v, keys)
	if err != nil {
		return err
	}
	_, err = a.stdout.Write(doc)
	return err
}

// table prints aligned columns.
func (a *app) table(head []string, rows [][]string) error {
	w := tabwriter.NewWriter(a.stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, strings.Join(head, "\t"))
	for _, r := range rows {
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	return w.Flush()
}

// Commands are the paths of all commands that do something, such as "store list". Help and
// completion are not in it.
func Commands() []string {
	var out []string
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		subs := cmd.Commands()
		for _, sub := range subs {
			walk(sub)
		}
		if len(subs) == 0 || cmd.Name() == benchName {
			out = append(out, strings.TrimPrefix(cmd.CommandPath(), "tinyctl "))
		}
	}
	walk((&app{}).root())
	return out
}
