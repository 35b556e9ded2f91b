// Package manpage writes the manual page of a tree of commands, in the language of man(7).
package manpage

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Write writes one page with all commands below root. The same tree gives the same bytes. version
// is the program's.
func Write(w io.Writer, root *cobra.Command, version string) error {
	b := bufio.NewWriter(w)
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(b, format+"\n", args...) }
	p(`.TH %s 1 "" "TinyKV %s" "TinyKV"`, strings.ToUpper(root.Name()), escape(version))
	p(".SH NAME\n%s \\- %s", escape(root.Name()), escape(root.Short))
	p(".SH SYNOPSIS\n.B %s\n.I command\n[arguments] [flags]", escape(root.Name()))
	p(".SH FLAGS OF ALL COMMANDS")
	flags(b, root.PersistentFlags())
	p(".SH COMMANDS")
	commands(b, root)
	p(`.SH EXIT STATUS
0 done, 1 failed, 2 wrong usage, 3 cannot tell, 4 not found`)
	return b.Flush()
}

// commands writes those below cmd that do something.
func commands(b *bufio.Writer, cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		if sub.Hidden || sub.Name() == "help" {
			continue
		}
		if !sub.HasSubCommands() || sub.HasLocalFlags() {
			usage := strings.TrimSuffix(sub.UseLine(), " [flags]")
			_, _ = fmt.Fprintf(b, ".SS %s\n%s.\n", escape(usage), escape(sub.Short))
			if sub.Long != "" {
				_, _ = fmt.Fprintf(b, ".PP\n.nf\n%s\n.fi\n", escape(sub.Long))
			}
			flags(b, sub.LocalNonPersistentFlags())
		}
		commands(b, sub)
	}
}

func flags(b *bufio.Writer, set *pflag.FlagSet) {
	set.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		value, usage := pflag.UnquoteUsage(f)
		if value != "" {
			name += " " + value
		}
		_, _ = fmt.Fprintf(b, ".TP\n.B %s\n%s\n", escape(name), escape(usage))
	})
}

// escape makes text of the page out of any text: no line of it is a request.
func escape(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(strings.TrimSpace(s))
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			lines[i] = `\&` + line
		}
	}
	var out strings.Builder
	for _, r := range strings.Join(lines, "\n") {
		if r < utf8.RuneSelf {
			_, _ = out.WriteRune(r)
			continue
		}
		_, _ = fmt.Fprintf(&out, `\[u%04X]`, r)
	}
	return out.String()
}
