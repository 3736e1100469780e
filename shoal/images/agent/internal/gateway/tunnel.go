package gateway

import (
	"context"
	"errors"
	"fmt"
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

// recheckInterval is how often the authorization of a request in progress is checked again. Tests shorten it.
var recheckInterval = 10 * time.Second

const (
	// An idle connection blocks a server that handles one connection at a time. A new connection for each request, on
	// the other hand, costs most of the rate that a server can reach.
	sandboxIdleTimeout = 100 * time.Millisecond
	maxIdlePerSandbox  = 64

	maxResponseHeaders = 256

	wakeRetryInterval = 200 * time.Millisecond
)

// errInvalidResponse means that the server's response must not be passed on.
var errInvalidResponse = errors.New("invalid HTTP response")

// tunnelRequest is a parsed request to a tunnel.
type tunnelRequest struct {
	target          target
	scheme          string // with which browsers reach the tunnel
	path            string // for the server in the sandbox, escaped
	query           string // without connect tokens
	credentials     credentials
	fromBrowser     bool // a browser says what it fetches
	echoSubprotocol bool // the client offered the API's subprotocol: the response must accept it
	missingSlash    bool // the path is the bare prefix: relative links would lead out of the tunnel
	authorization   authorization
}

func (t *tunnelRequest) lookupKey() lookupKey {
	return lookupKey{sandbox: t.target.sandbox, port: t.target.port}
}

// tunnels proxies requests to ports in sandboxes.
type tunnels struct {
	config     *Config
	authorizer *tunnelAuthorizer
	proxy      httputil.ReverseProxy
}

func newTunnels(config *Config, replicas *replicas) *tunnels {
	t := &tunnels{config: config, authorizer: &tunnelAuthorizer{lookup: newTunnelLookup(replicas)}}
	t.proxy = httputil.ReverseProxy{
		Rewrite:        t.rewrite,
		BufferPool:     buffers,
		Transport:      &sandboxTransport{pooled: t.transport(false), unpooled: t.transport(true)},
		ModifyResponse: t.modifyResponse,
		ErrorHandler:   t.writeError,
		ErrorLog:       log.New(io.Discard, "", 0),
	}
	return t
}

func (t *tunnels) transport(disableKeepAlives bool) *http.Transport {
	return &http.Transport{
		DialContext:            t.dial,
		DisableCompression:     true,
		DisableKeepAlives:      disableKeepAlives,
		MaxIdleConnsPerHost:    maxIdlePerSandbox,
		IdleConnTimeout:        sandboxIdleTimeout,
		ResponseHeaderTimeout:  serverTimeout,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxHeaderBytes,
	}
}

// sandboxTransport sends requests to servers in sandboxes. A request that cannot be retried gets a new connection,
// because the server may close a pooled one at that very moment.
type sandboxTransport struct {
	pooled, unpooled *http.Transport
}

// RoundTrip implements http.RoundTripper.
func (t *sandboxTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if canRetry(r) && r.Header.Get("Upgrade") == "" {
		return t.pooled.RoundTrip(r)
	}
	return t.unpooled.RoundTrip(r)
}

// serve answers one request. It changes the request's headers.
func (t *tunnels) serve(w *response, r *http.Request, in *inbound, dest target) {
	in.tunnel = t.newRequest(r, in, dest)
	ctx, cancel := context.WithCancelCause(withInbound(r.Context(), in))
	defer cancel(nil)
	r = r.WithContext(ctx)
	if !t.config.Auth {
		if p := t.config.checkLocal(r); p != nil {
			w.counter.rejected.Add(1)
			t.writeError(w, r, p)
			return
		}
	}
	auth, err := t.authorizer.authorize(ctx, in.tunnel)
	if err != nil {
		w.counter.rejected.Add(1)
		t.writeError(w, r, err)
		return
	}
	in.tunnel.authorization = auth
	if t.redirect(w, r, in) {
		return
	}
	w.abort = func() { cancel(errInvalidResponse) }
	recheck := time.AfterFunc(recheckInterval, func() { t.recheck(ctx, in.tunnel, cancel) })
	defer recheck.Stop()
	if r.ContentLength != 0 {
		in.wrapBody(w, r)
	}
	t.proxy.ServeHTTP(w, r)
}

func (t *tunnels) newRequest(r *http.Request, in *inbound, dest target) *tunnelRequest {
	request := &tunnelRequest{target: dest, scheme: in.publicScheme(t.config)}
	request.fromBrowser = r.Header.Get("Sec-Fetch-Mode") != ""
	path := strings.TrimPrefix(rawPath(r), dest.prefix)
	request.missingSlash = path == ""
	request.path = escapePath(path)
	request.credentials, request.echoSubprotocol = extractCredentials(r.Header)
	request.query, request.credentials.query = extractQueryToken(r.URL.RawQuery)
	request.credentials.trustCookies = trustCookies(r, in.websocket, request.scheme+"://"+in.host)
	return request
}

// recheck ends a request in progress once it is no longer authorized.
func (t *tunnels) recheck(ctx context.Context, request *tunnelRequest, end context.CancelCauseFunc) {
	for ctx.Err() == nil {
		if err := t.authorizer.recheck(ctx, request, request.authorization); err != nil && ctx.Err() == nil {
			end(err)
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(recheckInterval):
		}
	}
}

// redirect answers a request with a valid token in its URL or without the slash after the prefix, and browsers that are
// to load the page from the tunnel's own host. It returns false for all others.
func (t *tunnels) redirect(w *response, r *http.Request, in *inbound) bool {
	request, auth := in.tunnel, in.tunnel.authorization
	tokenInURL := request.credentials.query != "" && isSafe(r.Method) && auth.token != ""
	if in.websocket {
		return false
	}
	if own := t.ownOrigin(r, in); own != "" {
		writeRedirect(w, http.StatusTemporaryRedirect, own)
		return true
	}
	if !(tokenInURL || request.missingSlash) {
		return false
	}
	location := request.target.prefix + request.path
	if request.query != "" {
		location += "?" + request.query
	}
	location = sameHostPath(location)
	if !tokenInURL {
		writeRedirect(w, http.StatusPermanentRedirect, location)
		return true
	}
	age := max(1, int(time.Until(auth.expires).Seconds()))
	cookie := fmt.Sprintf("%s=%s; Path=%s/; Max-Age=%d; HttpOnly; SameSite=Lax",
		connectCookie, auth.token, request.target.prefix, age)
	if request.scheme == "https" {
		cookie += "; Secure"
	}
	w.Header().Set("Set-Cookie", cookie)
	writeRedirect(w, http.StatusSeeOther, location)
	return true
}

// writeRedirect writes a redirect that nobody stores. Its target learns no URL that may hold a token.
func writeRedirect(w http.ResponseWriter, status int, location string) {
	h := w.Header()
	h.Set("Location", location)
	h.Set("Content-Length", "0")
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	w.WriteHeader(status)
}

// sameHostPath returns the path in a form that no browser takes for the URL of another host.
func sameHostPath(path string) string { return "/" + strings.TrimLeft(path, `/\`) }

// rewrite makes the request for the server in the sandbox. It contains none of Shoal's own credentials.
func (t *tunnels) rewrite(p *httputil.ProxyRequest) {
	in := inboundFrom(p.In.Context())
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
	for _, name := range []string{"X-Request-Id", "Te", "Http2-Settings", "X-Request-Disconnect-Disabled"} {
		delete(h, name)
	}
	in.setForwarded(h, request.scheme)
	in.setTraceparent(h)
	if request.target.prefix != "" {
		h["X-Forwarded-Prefix"] = []string{request.target.prefix}
	}
}

// dial connects to the target of the context's request. If the relay cannot be reached, it looks the sandbox up again
// and tries once more: the sandbox may have moved to another node, or stopped. One that is stopped is started first.
func (t *tunnels) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	request := inboundFrom(ctx).tunnel
	info := request.authorization.info
	if info.Asleep {
		return t.wakeAndDial(ctx, request)
	}
	conn, err := dialSandbox(ctx, info.Relay, info.Grant, request.target.port)
	if err == nil {
		return conn, nil
	}
	if p := agentProblem(request.target, err); p != nil {
		return nil, p
	}
	if ctx.Err() != nil {
		return nil, err
	}
	info, failed := t.authorizer.lookup.get(ctx, request.lookupKey(), 0)
	if failed != nil {
		return nil, failed
	}
	if !info.Open {
		return nil, info.notFoundProblem()
	}
	if info.Asleep {
		return t.wakeAndDial(ctx, request)
	}
	if conn, err = dialSandbox(ctx, info.Relay, info.Grant, request.target.port); err == nil {
		return conn, nil
	}
	if p := agentProblem(request.target, err); p != nil {
		return nil, p
	}
	return nil, newProblem(fault.Unavailable, "the sandbox cannot be reached at the moment; try again")
}

// wakeAndDial has the API start the sandbox, and connects as soon as its server listens. Requests that come meanwhile
// wait for the same start.
func (t *tunnels) wakeAndDial(ctx context.Context, request *tunnelRequest) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, wakeTimeout)
	defer cancel()
	key := request.lookupKey()
	key.wake = true
	info, err := t.authorizer.lookup.get(ctx, key, 0)
	if err != nil {
		return nil, err
	}
	if !info.Open {
		return nil, info.notFoundProblem()
	}
	for {
		conn, err := dialSandbox(ctx, info.Relay, info.Grant, request.target.port)
		if err == nil {
			return conn, nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(wakeRetryInterval):
			continue
		}
		if p := agentProblem(request.target, err); p != nil {
			return nil, p
		}
		return nil, newProblem(fault.Unavailable, "the sandbox was started and cannot be reached yet; try again")
	}
}

// agentProblem returns the sandbox agent's error about the port as a problem, or nil for any other error.
func agentProblem(dest target, err error) *problem {
	var failure *agentError
	if !errors.As(err, &failure) {
		return nil
	}
	if failure.fault.Code != fault.Unavailable {
		return newProblem(failure.fault.Code, failure.fault.Message)
	}
	p := newProblem(fault.Unavailable, fmt.Sprintf(
		"nothing listens on port %d in sandbox %s; "+
			"start your server there, on 127.0.0.1:%d or on all addresses, and load this again",
		dest.port, dest.sandbox, dest.port))
	p.fields = map[string]any{"port": dest.port}
	return p
}

// writeError answers a request that failed: with an HTML page if the client accepts one, else with a problem document.
func (t *tunnels) writeError(w http.ResponseWriter, r *http.Request, err error) {
	in := inboundFrom(r.Context())
	p := in.bodyProblem(r)
	if p == nil {
		p = serverProblem(in.tunnel.target, err)
	}
	if !in.websocket && strings.Contains(r.Header.Get("Accept"), "text/html") {
		p.writePage(w, in.id)
	} else {
		p.write(w, in.id)
	}
}

func serverProblem(dest target, err error) *problem {
	if p, found := asProblem(err); found {
		return p
	}
	server := fmt.Sprintf("the server on port %d in the sandbox", dest.port)
	if isTimeout(err) {
		return unknownOutcome(server + " did not answer in time")
	}
	return unknownOutcome(server + " gave no valid HTTP answer; is it a web server?")
}
