// Package shell reads commands line by line and runs them: at a terminal with history and
// completion, else as a script.
package shell

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/shlex"
	"golang.org/x/term"
)

// Options are what a shell works with.
type Options struct {
	// Run runs a command and returns its exit code.
	Run func(args []string) int
	// Complete lists what may follow the words of a line, each of which begins with partial.
	Complete func(words []string, partial string) []string
	// In is read; if it is a terminal, lines are edited there.
	In  io.Reader
	Out io.Writer
	Err io.Writer
	// History is the file of former lines; empty keeps them in memory only.
	History string
}

const (
	prompt = "tinyctl> "
	help   = `Commands are those of tinyctl, without its name: get KEY, put KEY VALUE, scan, ...
help shows all of them, help COMMAND one.
\watch [SECONDS]  run the last command again and again until Ctrl-C
\q, exit, quit    leave, as Ctrl-D does
`
	usualWatch = 2 * time.Second
)

// IsTerminal tells whether lines that are read can be edited.
func IsTerminal(in io.Reader) bool {
	f, ok := in.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Run runs lines until the input ends. At a terminal it returns 0. A script ends with the first
// command that fails, and Run returns its exit code.
func Run(o Options) int {
	if IsTerminal(o.In) {
		return interactive(&o, o.In.(*os.File))
	}
	s := &session{o: &o}
	lines := bufio.NewScanner(o.In)
	lines.Buffer(nil, 16<<20)
	for n := 1; lines.Scan(); n++ {
		code, end := s.line(lines.Text())
		if code != 0 {
			fmt.Fprintf(o.Err, "tinyctl: line %d: %s\n", n, lines.Text())
			return code
		}
		if end {
			return 0
		}
	}
	if err := lines.Err(); err != nil {
		fmt.Fprintf(o.Err, "tinyctl: reading commands: %v\n", err)
		return 1
	}
	return 0
}

// session is what one line knows of those before.
type session struct {
	o    *Options
	last []string
}

// line runs a line; end tells whether it was the last one by its own word.
func (s *session) line(text string) (code int, end bool) {
	words, err := shlex.Split(text)
	switch {
	case strings.HasPrefix(strings.TrimSpace(text), `\watch`):
		return s.watch(strings.Fields(text)[1:]), false
	case strings.TrimSpace(text) == `\q`:
		return 0, true
	case err != nil:
		fmt.Fprintf(s.o.Err, "tinyctl: %v\n", err)
		return 2, false
	case len(words) == 0:
		return 0, false
	case len(words) == 1 && (words[0] == "exit" || words[0] == "quit"):
		return 0, true
	case words[0] == "shell":
		fmt.Fprintln(s.o.Err, "tinyctl: this is the shell")
		return 2, false
	case len(words) == 1 && words[0] == "help":
		fmt.Fprint(s.o.Out, help)
	}
	s.last = words
	return s.o.Run(words), false
}

// watch runs the last command until it is interrupted, or fails.
func (s *session) watch(args []string) int {
	every := usualWatch
	if len(args) > 0 {
		seconds, err := strconv.ParseFloat(args[0], 64)
		if err != nil || seconds < 0.1 || len(args) > 1 {
			fmt.Fprintln(s.o.Err, `tinyctl: \watch [SECONDS], at least 0.1`)
			return 2
		}
		every = time.Duration(seconds * float64(time.Second))
	}
	if len(s.last) == 0 {
		fmt.Fprintln(s.o.Err, `tinyctl: \watch: no command came before`)
		return 2
	}
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt)
	defer signal.Stop(interrupted)
	for {
		if code := s.o.Run(s.last); code != 0 {
			return code
		}
		select {
		case <-time.After(every):
			fmt.Fprintf(s.o.Out, "-- %s\n", time.Now().Format(time.TimeOnly))
		case <-interrupted:
			return 0
		}
	}
}

// interactive reads lines from a terminal. It is in raw mode while a line is edited, and as it was
// while a command runs, so that Ctrl-C ends the command.
func interactive(o *Options, tty *os.File) int {
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt) // commands end by it, the shell does not
	defer signal.Stop(interrupts)
	h := openHistory(o.History, o.Err)
	defer h.close()
	t := term.NewTerminal(struct {
		io.Reader
		io.Writer
	}{tty, o.Out}, prompt)
	t.History = h
	t.AutoCompleteCallback = func(line string, pos int, key rune) (string, int, bool) {
		if key != '\t' {
			return "", 0, false
		}
		return complete(o, line, pos, t)
	}
	fmt.Fprintln(o.Out, "Commands as those of tinyctl; help for help, Ctrl-D to leave.")
	s := &session{o: o}
	for {
		text, err := readLine(t, tty)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				fmt.Fprintf(o.Err, "tinyctl: the terminal: %v\n", err)
				return 1
			}
			fmt.Fprintln(o.Out)
			return 0
		}
		if _, end := s.line(text); end {
			return 0
		}
	}
}

func readLine(t *term.Terminal, tty *os.File) (string, error) {
	before, err := term.MakeRaw(int(tty.Fd()))
	if err != nil {
		return "", err
	}
	if w, h, err := term.GetSize(int(tty.Fd())); err == nil && w > 0 {
		_ = t.SetSize(w, h)
	}
	text, err := t.ReadLine()
	return text, errors.Join(err, term.Restore(int(tty.Fd()), before))
}

// complete extends the word before pos by what all its completions have in common, and lists them
// if there are several.
func complete(o *Options, line string, pos int, w io.Writer) (string, int, bool) {
	head, tail := line[:pos], line[pos:]
	from := strings.LastIndexAny(head, " \t") + 1
	words, err := shlex.Split(head[:from])
	if err != nil || o.Complete == nil {
		return "", 0, false
	}
	found := o.Complete(words, head[from:])
	if len(found) == 0 {
		return "", 0, false
	}
	common := found[0]
	for _, f := range found[1:] {
		for !strings.HasPrefix(f, common) {
			common = common[:len(common)-1]
		}
	}
	if len(found) == 1 {
		common += " "
	} else if len(common) <= len(head[from:]) {
		common = head[from:]
		fmt.Fprintf(w, "%s\n", strings.Join(found, "  "))
	}
	head = head[:from] + common
	return head + tail, len(head), true
}

// history has former lines, the newest last. It implements term.History.
type history struct {
	lines []string
	file  *os.File
}

// maxHistory bounds the lines that are read from the file.
const maxHistory = 1000

// openHistory reads the file, which only its user can read: lines may have values.
func openHistory(path string, errs io.Writer) *history {
	h := &history{}
	if path == "" {
		return h
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		fmt.Fprintf(errs, "tinyctl: there is no history: %v\n", err)
		return h
	}
	h.file = f
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		h.lines = append(h.lines, lines.Text())
	}
	h.lines = slices.Clone(h.lines[max(0, len(h.lines)-maxHistory):])
	return h
}

// Add implements term.History. A line that repeats the one before is left out.
func (h *history) Add(line string) {
	if strings.TrimSpace(line) == "" || len(h.lines) > 0 && h.lines[len(h.lines)-1] == line {
		return
	}
	h.lines = append(h.lines, line)
	if h.file != nil {
		_, _ = fmt.Fprintln(h.file, line) // the line is run whether it is kept or not
	}
}

// Len implements term.History.
func (h *history) Len() int { return len(h.lines) }

// At implements term.History: 0 is the newest line.
func (h *history) At(i int) string { return h.lines[len(h.lines)-1-i] }

func (h *history) close() {
	if h.file != nil {
		_ = h.file.Close()
	}
}
