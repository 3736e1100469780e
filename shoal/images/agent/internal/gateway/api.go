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

// maxBufferedBody is the largest body that the gateway reads before it forwards the request. The request can then be
// retried, and no replica waits for a slow client.
const maxBufferedBody = 64 << 10

// rayServeHeaders are the headers with which clients of Ray Serve control it.
var rayServeHeaders = []string{
	"X-Request-Timeout-Seconds", "Serve_multiplexed_model_id", "Serve-Multiplexed-Model-Id",
	"X-Session-Id", "X_session_id", "X-Request-Disconnect-Disabled",
}

// api proxies requests to the API's replicas.
type api struct {
	proxy httputil.ReverseProxy
}

func newAPI(replicas *replicas) *api {
	a := &api{}
	a.proxy = httputil.ReverseProxy{
		Rewrite:        rewriteForReplica,
		Transport:      newUpstream(replicas),
		BufferPool:     buffers,
		ModifyResponse: checkReplicaResponse,
		ErrorHandler:   writeError,
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
		in.wrapBody(w, r)
		if err := bufferBody(r); err != nil {
			writeError(w, r.WithContext(withInbound(r.Context(), in)), err)
			return
		}
	}
	defer func() {
		if in.replica != nil {
			in.replica.outstanding.Add(-1)
		}
	}()
	a.proxy.ServeHTTP(w, r.WithContext(withInbound(r.Context(), in)))
}

// bufferBody reads a small body into memory, so that the request can be retried.
func bufferBody(r *http.Request) error {
	if r.ContentLength < 0 || r.ContentLength > maxBufferedBody || r.Header.Get("Expect") != "" {
		return nil
	}
	connections := make([]byte, r.ContentLength)
	if _, err := io.ReadFull(r.Body, connections); err != nil {
		return err
	}
	r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(connections)), nil }
	r.Body, _ = r.GetBody()
	return nil
}

func rewriteForReplica(p *httputil.ProxyRequest) {
	in := inboundFrom(p.In.Context())
	p.Out.URL.Scheme = "http"
	p.Out.URL.RawQuery = p.In.URL.RawQuery
	p.Out.Host = p.In.Host
	h := p.Out.Header
	in.setForwarded(h, in.scheme)
	for _, name := range rayServeHeaders {
		delete(h, name)
	}
	delete(h, "Te")
	if !in.websocket { // replicas upgrade to no other protocol
		delete(h, "Connection")
		delete(h, "Upgrade")
	}
	h["X-Request-Id"] = []string{in.id}
	in.setTraceparent(h)
}

// checkReplicaResponse replaces a response that is not the application's by a problem. The application sets
// X-Request-Id on each of its responses; the HTTP server in front of it does not, and its responses are not meant for
// clients.
func checkReplicaResponse(r *http.Response) error {
	if len(r.Header["X-Request-Id"]) > 0 {
		return nil
	}
	if r.StatusCode == http.StatusForbidden {
		return newProblem(fault.PermissionDenied, "the API refuses this WebSocket")
	}
	if r.StatusCode >= 400 && r.StatusCode < 500 {
		return newProblem(fault.InvalidRequest, "this is not a valid HTTP/1.1 request")
	}
	return newProblem(fault.Internal, "a replica of the API failed; its log says why")
}

// writeError answers a request that got no response from a replica.
func writeError(w http.ResponseWriter, r *http.Request, err error) {
	in := inboundFrom(r.Context())
	if p := in.bodyProblem(r); p != nil {
		p.write(w, in.id)
		return
	}
	if p, found := asProblem(err); found {
		p.write(w, in.id)
		return
	}
	p := newProblem(fault.Internal, "the replica with this request ended before it answered; "+
		"the request may have been carried out: check before you retry")
	p.status = http.StatusBadGateway
	if isTimeout(err) {
		p.detail, p.status = "the replica with this request did not answer in time", http.StatusGatewayTimeout
	}
	p.write(w, in.id)
}

func isTimeout(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) && timeout.Timeout() && !errors.Is(err, context.Canceled)
}
