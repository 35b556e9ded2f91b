// Package cli is what the command lines of the servers have in common: flags in one or two dashes,
// what a wrong one is answered with, exit codes, the version.
package cli

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/pflag"
)

// Exit codes: after a signal, after a failure, after a wrong command line or configuration.
const (
	ExitOK    = 0
	ExitFail  = 1
	ExitUsage = 2
)

// Version is the release name; the build may set it. Commit and CommitTime (RFC 3339), if the build
// sets them, take the place of what Go's toolchain knows of the commit.
var (
	Version            = "dev"
	Commit, CommitTime string
)

// Parse reads a command line that has flags only. An unknown one is answered with the nearest there
// is.
func Parse(set *pflag.FlagSet, args []string) error {
	err := set.Parse(doubleDash(set, args))
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) {
		var names []string
		set.VisitAll(func(f *pflag.Flag) { names = append(names, "--"+f.Name) })
		name := "--" + unknown.GetSpecifiedName()
		return fmt.Errorf("unknown flag %s%s", name, DidYouMean("%s", name, names))
	}
	if err == nil && set.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", set.Arg(0))
	}
	return err
}

// doubleDash accepts the single-dash spelling of long flags ("-data-dir").
func doubleDash(set *pflag.FlagSet, args []string) []string {
	out := make([]string, 0, len(args))
	for i, a := range args {
		if a == "--" {
			return append(out, args[i:]...)
		}
		if len(a) > 2 && a[0] == '-' && a[1] != '-' {
			name, _, _ := strings.Cut(a[1:], "=")
			// A bundled short flag such as -Ldebug stays what it is.
			if set.Lookup(name) != nil || set.ShorthandLookup(a[1:2]) == nil {
				a = "-" + a
			}
		}
		out = append(out, a)
	}
	return out
}

// DidYouMean is what follows an unknown name in its error: the nearest of the words in the given
// format, or nothing.
func DidYouMean(format, name string, words []string) string {
	near := nearest(name, words)
	if near == "" {
		return ""
	}
	return fmt.Sprintf(", did you mean "+format+"?", near)
}

// nearest is the word with the smallest edit distance, "" if none is at all similar.
func nearest(name string, words []string) string {
	best, bestDist := "", len(name)/2+1
	for _, w := range words {
		if d := editDistance(name, w); d < bestDist {
			best, bestDist = w, d
		}
	}
	return best
}

// editDistance is Levenshtein's.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		prev := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := prev
			if a[i-1] != b[j-1] {
				cost = 1 + min(prev, row[j], row[j-1])
			}
			prev, row[j] = row[j], cost
		}
	}
	return row[len(b)]
}

// VersionText is what --version prints.
func VersionText(program string) string {
	commit, when := "unknown", "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				commit = s.Value
			case "vcs.time":
				when = s.Value
			}
		}
	}
	if Commit != "" {
		commit, when = Commit, CommitTime
	}
	return fmt.Sprintf("%s %s\nGit Commit Hash: %s\nCommit Time: %s\nGo Version: %s %s/%s\n",
		program, Version, commit, when, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
