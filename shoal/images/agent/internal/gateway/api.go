package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httputil"

	"shoal/agent/internal/fault"
)

// maxHeldBody is how much of a body is read before its request goes on, so that it can be sent again, and no replica waits for a slow client.
const maxHeldBody = 64 << 10

// serveHeaders are those by which clients of Ray Serve direct it.
var serveHeaders = []string{
	"X-Request-Timeout-Seconds", "Serve_multiplexed_model_id", "Serve-Multiplexed-Model-Id", "X-Session-Id", "X_session_id",
	"X-Request-Disconnect-Disabled",
}

// api passes requests to the API's replicas.
type api struct {
	proxy httputil.ReverseProxy
}

func newAPI(replicas *replicas) *api {
	a := &api{}
	a.proxy = httputil.ReverseProxy{
		Rewrite:        rewriteForReplica,
		Transport:      newUpstream(replicas),
		BufferPool:     buffers,
		ModifyResponse: checkAnswer,
		ErrorHandler:   tellFailure,
		ErrorLog:       log.New(io.Discard, "", 0),
	}
	return a
}

func (a *api) serve(w *response, r *http.Request, in *inbound) {
	if in.websocket {
		if p := checkHandshake(r); p != nil {
			p.write(w, in.id)
			return
		}
	}
	if r.ContentLength != 0 {
		in.readBody(w, r)
		if err := hold(r); err != nil {
			tellFailure(w, r.WithContext(in.in(r.Context())), err)
			return
		}
	}
	defer func() {
		if in.replica != nil {
			in.replica.outstanding.Add(-1)
		}
	}()
	a.proxy.ServeHTTP(w, r.WithContext(in.in(r.Context())))
}

// hold reads a small body, so that it can be given again.
func hold(r *http.Request) error {
	if r.ContentLength < 0 || r.ContentLength > maxHeldBody || r.Header.Get("Expect") != "" {
		return nil
	}
	held := make([]byte, r.ContentLength)
	if _, err := io.ReadFull(r.Body, held); err != nil {
		return err
	}
	r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(held)), nil }
	r.Body, _ = r.GetBody()
	return nil
}

func rewriteForReplica(p *httputil.ProxyRequest) {
	in := inboundOf(p.In.Context())
	p.Out.URL.Scheme = "http"
	p.Out.URL.RawQuery = p.In.URL.RawQuery
	p.Out.Host = p.In.Host
	h := p.Out.Header
	in.setForwarded(h, in.scheme)
	for _, name := range serveHeaders {
		delete(h, name)
	}
	delete(h, "Te")
	if !in.websocket { // no other protocol is spoken there
		delete(h, "Connection")
		delete(h, "Upgrade")
	}
	h["X-Request-Id"] = []string{in.id}
}

// checkAnswer finds out whether the application itself answers: it marks each of its answers with the request id. Else it is the server before
// it, with no words for a client's eyes.
func checkAnswer(r *http.Response) error {
	if len(r.Header["X-Request-Id"]) > 0 {
		return nil
	}
	if r.StatusCode == http.StatusForbidden {
		return newProblem(fault.PermissionDenied, "the API refuses this WebSocket")
	}
	if r.StatusCode >= 400 && r.StatusCode < 500 {
		return newProblem(fault.InvalidRequest, "this is no request of HTTP/1.1 that the API can read")
	}
	return newProblem(fault.Internal, "a replica of the API answered for a reason that only its log has")
}

// tellFailure answers in the place of a replica.
func tellFailure(w http.ResponseWriter, r *http.Request, err error) {
	in := inboundOf(r.Context())
	if p := in.brokenOff(r); p != nil {
		p.write(w, in.id)
		return
	}
	if p, found := asProblem(err); found {
		p.write(w, in.id)
		return
	}
	p := newProblem(fault.Internal, "the replica that had this request ended before it answered, and nobody knows whether it was carried out: look first")
	p.status = http.StatusBadGateway
	if isTimeout(err) {
		p.detail, p.status = "the replica that had this request did not answer in time", http.StatusGatewayTimeout
	}
	p.write(w, in.id)
}

func isTimeout(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) && timeout.Timeout() && !errors.Is(err, context.Canceled)
}
