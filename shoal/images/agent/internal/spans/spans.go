// Package spans records spans and sends them to a receiver of OpenTelemetry's OTLP over HTTP, as JSON.
package spans

import (
	"encoding/hex"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"
)

// Config says where spans go. The zero value turns them off.
type Config struct {
	Endpoint string            `json:"endpoint"` // URL of the receiver; /v1/traces is added
	Share    float64           `json:"share"`    // of the traces that begin here, how many are recorded
	Headers  string            `json:"headers"`  // path of a file of lines `Name: value`; may be empty
	Resource map[string]string `json:"resource"` // attributes of the process
}

// Parent is the span of a caller in another process, as a traceparent header tells it.
type Parent struct {
	trace, span, flags string
}

// ParseParent reads a traceparent header. It reports false for one that cannot be followed.
func ParseParent(header string) (Parent, bool) {
	if len(header) != 55 || header[2] != '-' || header[35] != '-' || header[52] != '-' {
		return Parent{}, false
	}
	p := Parent{header[3:35], header[36:52], header[53:]}
	if header[:2] == "ff" || !isLowerHex(header[:2]+p.trace+p.span+p.flags) ||
		strings.Trim(p.trace, "0") == "" || strings.Trim(p.span, "0") == "" {
		return Parent{}, false
	}
	return p, true
}

// Sampled reports whether the caller records its trace.
func (p Parent) Sampled() bool {
	flags, err := strconv.ParseUint(p.flags, 16, 8)
	return err == nil && flags&1 == 1
}

// Span is one that has begun. The methods of a nil one do nothing.
type Span struct {
	tracer                         *Tracer
	trace, id, parent, flags, name string
	began                          time.Time
}

// Start begins a span below the caller's, where that is recorded; for no caller it begins a trace, or decides that it
// is not recorded. It gives the traceparent to pass on, empty: the caller's own; and the span, nil: none is recorded.
func (t *Tracer) Start(name string, parent Parent) (string, *Span) {
	if t == nil || parent.trace != "" && !parent.Sampled() {
		return "", nil
	}
	s := &Span{t, parent.trace, randomHex(8), parent.span, parent.flags, name, time.Now()}
	if parent.trace == "" {
		s.trace = randomHex(16)
		s.flags = "01"
		if rand.Float64() >= t.config.Share {
			return "00-" + s.trace + "-" + s.id + "-00", nil
		}
	}
	return "00-" + s.trace + "-" + s.id + "-" + s.flags, s
}

// End ends the span. failed: it is marked as an error. Attributes come as pairs of name and value; empty values are
// left out.
func (s *Span) End(failed bool, pairs ...string) {
	if s == nil {
		return
	}
	ended := endedSpan{
		TraceID: s.trace, SpanID: s.id, ParentSpanID: s.parent, Name: s.name, Kind: kindServer,
		Start: unixNano(s.began), End: unixNano(s.began.Add(time.Since(s.began))), Attributes: attributes(pairs),
	}
	if failed {
		ended.Status.Code = statusError
	}
	s.tracer.add(ended)
}

func isLowerHex(text string) bool {
	for i := range len(text) {
		if c := text[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func randomHex(size int) string {
	var id [16]byte
	for i := 0; i < size; i += 8 {
		for n, j := rand.Uint64()|1, 0; j < 8; n, j = n>>8, j+1 { // never zero
			id[i+j] = byte(n)
		}
	}
	return hex.EncodeToString(id[:size])
}

func unixNano(at time.Time) string { return strconv.FormatInt(at.UnixNano(), 10) }
