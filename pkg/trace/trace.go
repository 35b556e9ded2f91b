// Package trace carries the stages of a request from the store that served it to the client that
// asks for them. The client asks by metadata of the call (Ask), the store answers in the call's
// trailer (Trailer). What is not asked for costs nothing.
package trace

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/metadata"
)

const (
	// Ask is the key of the metadata by which a client asks for the stages of a call.
	Ask = "tinykv-trace"
	// Trailer is the key under which a store answers.
	Trailer = "tinykv-trace-bin"
)

// maxSpans bounds the stages of one request; further ones are left out.
const maxSpans = 64

// Span is a stage of a request at a store.
type Span struct {
	Name string `json:"name"`
	// Start is when it began, after the request had come; Took how long it was.
	Start time.Duration `json:"start"`
	Took  time.Duration `json:"took"`
}

// Recorder gathers the stages of one request. Safe for concurrent use; nil records nothing.
type Recorder struct {
	came time.Time
	mu   struct {
		sync.Mutex
		spans []Span
	}
}

// New makes a recorder for a request that came at a time.
func New(came time.Time) *Recorder { return &Recorder{came: came} }

// Asked tells whether a call's metadata asks for its stages.
func Asked(md metadata.MD) bool { return len(md[Ask]) > 0 }

type contextKey struct{}

// With is a context whose request is recorded.
func With(ctx context.Context, r *Recorder) context.Context {
	return context.WithValue(ctx, contextKey{}, r)
}

// From is the recorder of a request; nil if nobody has asked for its stages.
func From(ctx context.Context) *Recorder {
	r, _ := ctx.Value(contextKey{}).(*Recorder)
	return r
}

// Add records a stage.
func (r *Recorder) Add(name string, start time.Time, took time.Duration) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.mu.spans) < maxSpans {
		r.mu.spans = append(r.mu.spans,
			Span{Name: name, Start: max(start.Sub(r.came), 0), Took: max(took, 0)})
	}
}

// Begin begins a stage, which ends when the result is called.
func (r *Recorder) Begin(name string) (end func()) {
	if r == nil {
		return func() {}
	}
	start := time.Now()
	return func() { r.Add(name, start, time.Since(start)) }
}

// Metadata is the trailer that carries what was recorded.
func (r *Recorder) Metadata() metadata.MD {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, err := json.Marshal(r.mu.spans)
	if err != nil {
		panic(fmt.Sprintf("trace: %v", err)) // texts and numbers can be encoded
	}
	return metadata.MD{Trailer: []string{string(b)}}
}

// Spans are the stages in a trailer, in the order in which they ended; none if it has none that can
// be read.
func Spans(trailer metadata.MD) []Span {
	var out []Span
	for _, v := range trailer[Trailer] {
		var spans []Span
		if json.Unmarshal([]byte(v), &spans) == nil {
			out = append(out, spans...)
		}
	}
	return out
}
