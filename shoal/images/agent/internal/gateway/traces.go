package gateway

import (
	"net/http"
	"strconv"
	"time"

	"shoal/agent/internal/spans"
)

// lastSpansTimeout is how long a gateway that ends waits until its last spans are sent.
const lastSpansTimeout = 3 * time.Second

// untracedPaths are what machines ask all the time. No trace begins with them.
var untracedPaths = map[string]bool{"/v1/health": true, "/v1/ready": true, "/metrics": true}

// startSpan begins the gateway's span of a request, and has its traceparent passed on. It returns nil if none is
// recorded.
func (g *Gateway) startSpan(r *http.Request, in *inbound, toTunnel bool) *spans.Span {
	var parent spans.Parent
	found := false
	if headers := r.Header["Traceparent"]; len(headers) == 1 {
		parent, found = spans.ParseParent(headers[0])
	}
	if !found && !toTunnel && untracedPaths[r.URL.Path] {
		return nil
	}
	name := r.Method
	switch name {
	case "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS":
	default:
		name = "HTTP"
	}
	traceparent, span := g.tracer.Start(name, parent)
	if span != nil || !toTunnel { // replicas must know what was decided; servers in sandboxes need not
		in.traceparent = traceparent
	}
	return span
}

func endSpan(span *spans.Span, w *response, in *inbound, sandbox string) {
	if span == nil {
		return
	}
	status := w.status
	if status == 0 {
		status = 499 // the client left before it was answered, as in the log of the API
	}
	kind := "api"
	if sandbox != "" {
		kind = "tunnel"
	}
	span.End(status >= 500, "http.response.status_code", strconv.Itoa(status),
		"shoal.kind", kind, "shoal.request_id", in.id, "shoal.sandbox_id", sandbox)
}

// setTraceparent makes what the request leads to part of the gateway's span.
func (in *inbound) setTraceparent(h http.Header) {
	if in.traceparent != "" {
		h["Traceparent"] = []string{in.traceparent}
	}
}
