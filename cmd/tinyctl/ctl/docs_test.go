package ctl

import (
	"bufio"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
)

// docCommand is a command line of tinyctl in a document: in a block or between backquotes.
var docCommand = regexp.MustCompile(
	"^(?: {4,}|\\$ )?(?:bin/)?tinyctl ([^#]*)|`(?:bin/)?tinyctl ([^`]+)`|" +
		"`((?:region|store|operator|member|scheduler|check|debug|recover|cert) [a-z][^`]*)`")

// TestCommandsOfTheDocumentsExist: each command that a document names is one, and has the flags
// that it is given there.
func TestCommandsOfTheDocumentsExist(t *testing.T) {
	paths, err := filepath.Glob("../../../docs/*.md")
	require.NoError(t, err)
	paths = append(paths, "../../../README.md", "../../../CONTRIBUTING.md",
		"../../../ARCHITECTURE.md")
	checked := 0
	for _, path := range paths {
		f, err := os.Open(path)
		require.NoError(t, err)
		lines := bufio.NewScanner(f)
		for n := 1; lines.Scan(); n++ {
			for _, m := range docCommand.FindAllStringSubmatch(lines.Text(), -1) {
				words := strings.Fields(m[1] + m[2] + m[3])
				require.NoError(t, commandExists(words), "%s:%d: tinyctl %s", filepath.Base(path),
					n, strings.Join(words, " "))
				checked++
			}
		}
		require.NoError(t, lines.Err())
		require.NoError(t, f.Close())
	}
	require.Greater(t, checked, 40)
	for _, wrong := range []string{
		"nothing", "region nothing", "status --nothing", "region show --to 1",
	} {
		require.Error(t, commandExists(strings.Fields(wrong)), wrong)
	}
}

// commandExists looks for the command, and for its flags.
func commandExists(words []string) error {
	words = plainWords(words)
	if len(words) == 0 {
		return nil
	}
	root := new(app).root()
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	root.InitDefaultVersionFlag()
	cmd, rest, err := root.Find(words)
	if err != nil {
		return err
	}
	cmd.InitDefaultHelpFlag()
	if cmd.HasSubCommands() && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		return usagef("%s has no command %s", cmd.CommandPath(), rest[0])
	}
	known := pflag.NewFlagSet("", pflag.ContinueOnError)
	known.AddFlagSet(cmd.Flags())
	known.AddFlagSet(cmd.InheritedFlags())
	for _, w := range words {
		name, _, _ := strings.Cut(w, "=")
		switch long, isLong := strings.CutPrefix(name, "--"); {
		case isLong && long != "" && known.Lookup(long) == nil:
			return usagef("%s has no flag %s", cmd.CommandPath(), name)
		case !isLong && len(name) == 2 && name[0] == '-' && known.ShorthandLookup(name[1:]) == nil:
			return usagef("%s has no flag %s", cmd.CommandPath(), name)
		}
	}
	return nil
}

// plainWords are those of one command: of alternatives the first, without the brackets of what may
// be left out.
func plainWords(words []string) (out []string) {
	for _, w := range words {
		if w == "|" || w == "&" || w == "&&" || w == ">" || w == ";" {
			break
		}
		if strings.HasPrefix(w, "(") { // a remark
			break
		}
		w = strings.Trim(w, "[].,;:")
		if at := strings.IndexByte(w, '|'); at > 0 {
			w = w[:at]
		}
		if w != "" {
			out = append(out, w)
		}
	}
	return out
}
