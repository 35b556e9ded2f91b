package arch

import (
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// block is a part of a document that is wrapped, or left, as a whole.
type block struct {
	lines []string
	prose bool
}

var listItem = regexp.MustCompile(`^\s*(?:[-*]|[0-9]+\.) `)

// blocks cuts a document into paragraphs and items of lists, which are prose, and headings, tables
// and code, which are not.
func blocks(text string) (out []block) {
	inCode, lastBlank := false, true
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		trimmed := strings.TrimSpace(line)
		isFence := strings.HasPrefix(trimmed, "```")
		isCode := inCode || isFence ||
			lastBlank && strings.HasPrefix(line, "    ") && !listItem.MatchString(line)
		follows := len(out) > 0 && out[len(out)-1].prose
		switch {
		case isFence:
			inCode = !inCode
			fallthrough
		case isCode, trimmed == "", strings.HasPrefix(trimmed, "#"),
			strings.HasPrefix(trimmed, "|"), strings.HasPrefix(trimmed, "<"):
			out = append(out, block{lines: []string{line}})
		case follows && !listItem.MatchString(line):
			out[len(out)-1].lines = append(out[len(out)-1].lines, line)
		default:
			out = append(out, block{lines: []string{line}, prose: true})
		}
		lastBlank = trimmed == "" || isCode
	}
	return out
}

// longLines counts lines of prose that are too long and have no link.
func longLines(text string) (n int) {
	for _, b := range blocks(text) {
		for _, line := range b.lines {
			if b.prose && utf8.RuneCountInString(line) > maxDocumentColumns &&
				!strings.Contains(line, "](") {
				n++
			}
		}
	}
	return n
}

// wrapDocument breaks the lines of each paragraph and item that has one that is too long.
func wrapDocument(text string) string {
	var out strings.Builder
	for _, b := range blocks(text) {
		if b.prose && longest(b.lines) > maxDocumentColumns {
			b.lines = wrap(b.lines)
		}
		for _, line := range b.lines {
			out.WriteString(line + "\n")
		}
	}
	return out.String()
}

func longest(lines []string) (n int) {
	for _, line := range lines {
		n = max(n, utf8.RuneCountInString(line))
	}
	return n
}

// unbroken are links and pieces of code, in which a line does not end, and words. What sticks to
// them stays with them.
var unbroken = regexp.MustCompile("(?:`[^`]*`|\\[[^]]*\\]\\([^)]*\\)|[^\\s`\\[]|\\[)+")

// beginsSomething matches words that would make another thing of a line which begins with them.
var beginsSomething = regexp.MustCompile(`^(?:[-+*#|>=]|[0-9]+[.)]$)`)

// wrap fills lines anew; an item of a list is indented behind its mark.
func wrap(lines []string) (out []string) {
	mark := listItem.FindString(lines[0])
	indent := strings.Repeat(" ", len(mark))
	if mark == "" {
		indent = lines[0][:len(lines[0])-len(strings.TrimLeft(lines[0], " "))]
	}
	text := strings.TrimPrefix(strings.Join(lines, "\n"), mark)
	var words []string // of the line that is filled
	end := func() {
		start := indent
		if len(out) == 0 {
			start = mark + indent[len(mark):]
		}
		out = append(out, start+strings.Join(words, " "))
	}
	columns := len(indent) - 1
	for _, word := range unbroken.FindAllString(text, -1) {
		word = strings.Join(strings.Fields(word), " ")
		width := utf8.RuneCountInString(word)
		if len(words) > 0 && columns+1+width > maxDocumentColumns {
			var carried []string
			if last := len(words) - 1; last > 0 && beginsSomething.MatchString(word) {
				words, carried = words[:last], []string{words[last]}
			}
			end()
			words = append([]string(nil), carried...)
			columns = len(indent) - 1
			for _, w := range words {
				columns += 1 + utf8.RuneCountInString(w)
			}
		}
		words = append(words, word)
		columns += 1 + width
	}
	end()
	return out
}

// sentenceEnd is where a sentence ends: behind a full stop, a question or exclamation mark or a
// colon.
var sentenceEnd = regexp.MustCompile(`[.!?:][)*"]*\s+`)

// meanWords is how many words a sentence of a document's prose has on average, those of one or two
// words not counted.
func meanWords(text string) float64 {
	words, sentences := 0, 0
	for _, b := range blocks(text) {
		if !b.prose {
			continue
		}
		prose := listItem.ReplaceAllString(strings.Join(b.lines, " "), "")
		for _, s := range sentenceEnd.Split(relativeLink.ReplaceAllString(prose, "]"), -1) {
			if n := len(strings.Fields(s)); n > 2 {
				words += n
				sentences++
			}
		}
	}
	if sentences == 0 {
		return 0
	}
	return float64(words) / float64(sentences)
}

// TestWrap: words stay in their order, code and links whole, and what is not too long as it is.
func TestWrap(t *testing.T) {
	a := strings.TrimSpace(strings.Repeat("abcd ", 22)) // 109 columns
	in := "# T\n\n" + a + " `go test ./x` is\nbroken.\n\n- " + a +
		" [a link](raft.md#x), and\n  more\n- short\n  item\n\n" +
		"1. " + a + " of 2025.\n\n```\n" + a + a + "\n```\n\n    " + a + a + "\n\n| " + a + a +
		" |\n"
	want := "# T\n\n" + a + "\n`go test ./x` is broken.\n\n- " + a +
		"\n  [a link](raft.md#x), and more\n- short\n  item\n\n" +
		"1. " + a + "\n   of 2025.\n\n```\n" + a + a + "\n```\n\n    " + a + a + "\n\n| " + a + a +
		" |\n"
	require.Equal(t, want, wrapDocument(in))
	require.Equal(t, wrapDocument(in), wrapDocument(wrapDocument(in)), "twice is the same")
	require.Zero(t, longLines(wrapDocument(in)))
}
