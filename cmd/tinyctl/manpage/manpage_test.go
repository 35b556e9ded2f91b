package manpage

import (
	"bytes"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
)

func TestWrite(t *testing.T) {
	root := &cobra.Command{Use: "tool", Short: "Do things"}
	root.PersistentFlags().StringP("output", "o", "table", "table or json")
	group := &cobra.Command{Use: "thing", Short: "Things…"}
	show := &cobra.Command{
		Use: "show ID", Short: "Show one", Long: ".not a request\n  a\\b", Run: func(*cobra.Command, []string) {},
	}
	show.Flags().Int("limit", 1, "at most so `many`")
	root.AddCommand(group)
	group.AddCommand(show)
	var out bytes.Buffer
	require.NoError(t, Write(&out, root, "v1-2"))
	require.Equal(t, `.TH TOOL 1 "" "TinyKV v1\-2" "TinyKV"
.SH NAME
tool \- Do things
.SH SYNOPSIS
.B tool
.I command
[arguments] [flags]
.SH FLAGS OF ALL COMMANDS
.TP
.B \-o, \-\-output string
table or json
.SH COMMANDS
.SS tool thing show ID
Show one.
.PP
.nf
\&.not a request
  a\eb
.fi
.TP
.B \-\-limit many
at most so many
.SH EXIT STATUS
0 done, 1 failed, 2 wrong usage, 3 cannot tell, 4 not found
`, out.String())
}
