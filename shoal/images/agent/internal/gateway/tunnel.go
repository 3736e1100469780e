package gateway

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"time"

	"shoal/agent/internal/fault"
)

// guardEvery is how often it is looked whether who is inside would still be let in. Tests look more often.
var guardEvery = 10 * time.Second

const (

	// A server that serves one connection after another is held up by an idle one, and dialling for each request costs most of the rate that
	// a server can have.
	idleInside    = 100 * time.Millisecond
	maxIdleInside = 64

	maxAnswerHeaders = 256
)

// errNoHTTP: what the server answers is nothing that may be passed on.
var errNoHTTP = errors.New("no proper HTTP answer")

// tunnelRequest is a request to a tunnel, taken apart.
type tunnelRequest struct {
	target     target
	scheme     string // as browsers reach the tunnel
	path       string // as the server inside sees it, escaped
	query      string // without connect tokens
	offered    credentials
	acceptsAPI bool // the client offered the API's own subprotocol, which carried the token, and wants to hear of it
	noSlash    bool // the prefix itself was asked for: relative links would lead out of the tunnel
	admission  admission
}

func (t *tunnelRequest) question() question {
	return question{sandbox: t.target.sandbox, port: t.target.port}
}

// tunnels carries requests to ports in sandboxes.
type tunnels struct {
	config     *Config
	gatekeeper *gatekeeper
	proxy      httputil.ReverseProxy
}

func newTunnels(config *Config, replicas *replicas) *tunnels {
	t := &tunnels{config: config, gatekeeper: &gatekeeper{oracle: newOracle(replicas)}}
	t.proxy = httputil.ReverseProxy{
		Rewrite:        t.rewrite,
		BufferPool:     buffers,
		Transport:      &inside{kept: t.transport(false), fresh: t.transport(true)},
		ModifyResponse: t.fitAnswer,
		ErrorHandler:   t.tellFailure,
		ErrorLog:       log.New(io.Discard, "", 0),
	}
	return t
}

func (t *tunnels) transport(closing bool) *http.Transport {
	return &http.Transport{
		DialContext:            t.dial,
		DisableCompression:     true,
		DisableKeepAlives:      closing,
		MaxIdleConnsPerHost:    maxIdleInside,
		IdleConnTimeout:        idleInside,
		ResponseHeaderTimeout:  serverPatience,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxHeaderBytes,
	}
}

// inside speaks with servers in sandboxes. What cannot be sent again gets a connection of its own: a kept one the server may just close.
type inside struct {
	kept, fresh *http.Transport
}

// RoundTrip implements http.RoundTripper.
func (i *inside) RoundTrip(r *http.Request) (*http.Response, error) {
	if mayRepeat(r) && r.Header.Get("Upgrade") == "" {
		return i.kept.RoundTrip(r)
	}
	return i.fresh.RoundTrip(r)
}

// serve answers one request. It changes the request's headers.
func (t *tunnels) serve(w *response, r *http.Request, in *inbound, where target) {
	in.tunnel = t.takeApart(r, in, where)
	ctx, cancel := context.WithCancelCause(in.in(r.Context()))
	defer cancel(nil)
	r = r.WithContext(ctx)
	if !t.config.Auth {
		if p := t.config.checkLocal(r); p != nil {
			t.tellFailure(w, r, p)
			return
		}
	}
	let, err := t.gatekeeper.admit(ctx, in.tunnel)
	if err != nil {
		t.tellFailure(w, r, err)
		return
	}
	in.tunnel.admission = let
	if t.redirect(w, r, in) {
		return
	}
	w.abort = func() { cancel(errNoHTTP) }
	guard := time.AfterFunc(guardEvery, func() { t.guard(ctx, in.tunnel, cancel) })
	defer guard.Stop()
	if r.ContentLength != 0 {
		in.readBody(w, r)
	}
	t.proxy.ServeHTTP(w, r)
}

func (t *tunnels) takeApart(r *http.Request, in *inbound, where target) *tunnelRequest {
	request := &tunnelRequest{target: where, scheme: in.publicScheme(t.config)}
	path := strings.TrimPrefix(rawPath(r), where.prefix)
	request.noSlash = path == ""
	request.path = escapeRest(path)
	request.offered, request.acceptsAPI = takeCredentials(r.Header)
	request.query, request.offered.query = takeQuery(r.URL.RawQuery)
	request.offered.ownPage = isOwnPage(r, in.websocket, request.scheme+"://"+in.host)
	return request
}

// guard looks again and again whether a request that goes on would still be let in, and else ends it.
func (t *tunnels) guard(ctx context.Context, request *tunnelRequest, end context.CancelCauseFunc) {
	for ctx.Err() == nil {
		if err := t.gatekeeper.still(ctx, request, request.admission); err != nil && ctx.Err() == nil {
			end(err)
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(guardEvery):
		}
	}
}

// redirect sends a browser on that came with a token in the URL, or without the slash; false for all others.
func (t *tunnels) redirect(w *response, r *http.Request, in *inbound) bool {
	request, let := in.tunnel, in.tunnel.admission
	byLink := request.offered.query != "" && isSafe(r.Method) && let.token != ""
	if in.websocket || !(byLink || request.noSlash) {
		return false
	}
	where := request.target.prefix + request.path
	if request.query != "" {
		where += "?" + request.query
	}
	h := w.Header()
	h.Set("Location", withinHost(where))
	h.Set("Content-Length", "0")
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	if !byLink {
		w.WriteHeader(http.StatusPermanentRedirect)
		return true
	}
	age := max(1, int(time.Until(let.expires).Seconds()))
	cookie := connectCookie + "=" + let.token + "; Path=" + request.target.prefix + "/; Max-Age=" + strconv.Itoa(age) + "; HttpOnly; SameSite=Lax"
	if request.scheme == "https" {
		cookie += "; Secure"
	}
	h.Set("Set-Cookie", cookie)
	w.WriteHeader(http.StatusSeeOther)
	return true
}

// withinHost is a path that no browser takes for another host.
func withinHost(path string) string { return "/" + strings.TrimLeft(path, `/\`) }

// rewrite makes the request as the server inside gets it. Nothing that opens Shoal's own doors is left in it.
func (t *tunnels) rewrite(p *httputil.ProxyRequest) {
	in := inboundOf(p.In.Context())
	request := in.tunnel
	p.Out.URL = &url.URL{
		Scheme: "http", Host: request.target.sandbox + ":" + strconv.Itoa(request.target.port),
		RawQuery: request.query, RawPath: request.path,
	}
	var err error
	if p.Out.URL.Path, err = url.PathUnescape(request.path); err != nil {
		p.Out.URL.Path, p.Out.URL.RawPath = request.path, ""
	}
	p.Out.Host = in.host
	h := p.Out.Header
	for _, name := range []string{"X-Real-Ip", "X-Request-Id", "Te", "Http2-Settings", "X-Request-Disconnect-Disabled"} {
		delete(h, name)
	}
	in.setForwarded(h, request.scheme)
	if request.target.prefix != "" {
		h["X-Forwarded-Prefix"] = []string{request.target.prefix}
	}
}

// dial connects to the target of the request that the context is of. The sandbox's place may be another than it was a moment ago.
func (t *tunnels) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	request := inboundOf(ctx).tunnel
	known := request.admission.knowledge
	conn, err := dialSandbox(ctx, known.Relay, known.Grant, request.target.port)
	if err == nil {
		return conn, nil
	}
	if p := saidByAgent(request.target, err); p != nil {
		return nil, p
	}
	if ctx.Err() != nil {
		return nil, err
	}
	known, failed := t.gatekeeper.oracle.look(ctx, request.question(), 0)
	if failed != nil {
		return nil, failed
	}
	if !known.Open {
		return nil, known.absence()
	}
	if conn, err = dialSandbox(ctx, known.Relay, known.Grant, request.target.port); err == nil {
		return conn, nil
	}
	if p := saidByAgent(request.target, err); p != nil {
		return nil, p
	}
	return nil, newProblem(fault.Unavailable, "the sandbox cannot be reached at the moment; try again")
}

// saidByAgent is what the sandbox's own agent says of the port, as a problem; nil where the error is another.
func saidByAgent(where target, err error) *problem {
	var said *agentError
	if !errors.As(err, &said) {
		return nil
	}
	if said.fault.Code != fault.Unavailable {
		return newProblem(said.fault.Code, said.fault.Message)
	}
	at := strconv.Itoa(where.port)
	p := newProblem(fault.Unavailable, "nothing listens on port "+at+" in sandbox "+where.sandbox+"; start your server there, on 127.0.0.1:"+at+
		" or on all addresses, and load this again")
	p.fields = map[string]any{"port": where.port}
	return p
}

// tellFailure answers in the place of a server in a sandbox: as a page where a browser asks for one.
func (t *tunnels) tellFailure(w http.ResponseWriter, r *http.Request, err error) {
	in := inboundOf(r.Context())
	p := in.brokenOff(r)
	if p == nil {
		p = failureOf(in.tunnel.target, err)
	}
	if !in.websocket && strings.Contains(r.Header.Get("Accept"), "text/html") {
		p.writePage(w, in.id)
	} else {
		p.write(w, in.id)
	}
}

func failureOf(where target, err error) *problem {
	if p, found := asProblem(err); found {
		return p
	}
	at := strconv.Itoa(where.port)
	if isTimeout(err) {
		return unsure("what listens on port " + at + " in the sandbox did not answer in time")
	}
	return unsure("what listens on port " + at + " in the sandbox gave no proper HTTP answer; is it a web server?")
}
