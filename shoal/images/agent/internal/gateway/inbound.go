package gateway

import (
	"context"
	"encoding/hex"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"strings"
)

// inbound is what the gateway knows of a request.
type inbound struct {
	id        string // the request id
	client    string // the client's address
	scheme    string // "http" or "https", as the client reached us or the proxy before us
	host      string // as the client calls us
	websocket bool   // it asks for a WebSocket

	body    *requestBody // if it has one that is read as it comes
	replica *replica     // that has the request, if it is one to the API
	tunnel  *tunnelRequest
}

type inboundKey struct{}

func (in *inbound) in(ctx context.Context) context.Context {
	return context.WithValue(ctx, inboundKey{}, in)
}

func inboundOf(ctx context.Context) *inbound {
	in, _ := ctx.Value(inboundKey{}).(*inbound)
	return in
}

// describe looks at a request. What it says about the client itself is believed only where a trusted proxy sent it.
func (c *Config) describe(r *http.Request) *inbound {
	in := &inbound{id: requestID(r.Header), scheme: "http", host: cleanHost(r.Host)}
	if r.TLS != nil {
		in.scheme = "https"
	}
	if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		address := peer.Addr().Unmap()
		in.client = address.String()
		if c.trusts(address) {
			c.believe(in, r.Header)
		}
	}
	in.websocket = strings.EqualFold(r.Header.Get("Upgrade"), "websocket") && hasToken(r.Header["Connection"], "upgrade")
	return in
}

// believe takes what a trusted proxy says. Of several addresses the last one that is no trusted proxy's is the client's: whatever stands
// before it the client may have made up.
func (c *Config) believe(in *inbound, h http.Header) {
	chain := strings.Split(strings.Join(h["X-Forwarded-For"], ","), ",")
	for i := len(chain) - 1; i >= 0; i-- {
		address, err := netip.ParseAddr(strings.TrimSpace(chain[i]))
		if err != nil {
			break
		}
		address = address.Unmap()
		in.client = address.String()
		if !c.trusts(address) {
			break
		}
	}
	switch proto := strings.ToLower(lastOf(h["X-Forwarded-Proto"])); proto {
	case "http", "https":
		in.scheme = proto
	}
	if host := lastOf(h["X-Forwarded-Host"]); host != "" && cleanHost(host) == host {
		in.host = host
	}
}

// publicScheme is how browsers reach us.
func (in *inbound) publicScheme(c *Config) string {
	if c.publicScheme != "" {
		return c.publicScheme
	}
	return in.scheme
}

// setForwarded says in the request's headers who asks, one clean value each, in the place of all that a client said.
func (in *inbound) setForwarded(h http.Header, scheme string) {
	for name := range h {
		if strings.HasPrefix(name, "X-Forwarded-") || strings.HasPrefix(name, "X-Shoal-Gateway-") {
			delete(h, name)
		}
	}
	delete(h, "Forwarded")
	h["X-Forwarded-For"] = []string{in.client}
	h["X-Forwarded-Proto"] = []string{scheme}
	h["X-Forwarded-Host"] = []string{in.host}
}

// requestID is the client's own, if it is the only one and looks like one (REQUEST_ID in shoal.model.http); else a new one.
func requestID(h http.Header) string {
	if given := h["X-Request-Id"]; len(given) == 1 && isRequestID(given[0]) {
		return given[0]
	}
	var random [16]byte
	for i := 0; i < len(random); i += 8 {
		n := rand.Uint64()
		for j := range 8 {
			random[i+j] = byte(n >> (8 * j))
		}
	}
	return hex.EncodeToString(random[:])
}

func isRequestID(text string) bool {
	if len(text) == 0 || len(text) > 64 {
		return false
	}
	for i := range len(text) {
		switch c := text[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

// cleanHost is the host as it may stand in redirects and pages; "localhost" for nonsense, which whoever sent it would find there again.
func cleanHost(host string) string {
	if host == "" || len(host) > 300 {
		return "localhost"
	}
	for i := range len(host) {
		switch c := host[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte(".-_:[]", c) >= 0:
		default:
			return "localhost"
		}
	}
	return host
}

// lastOf is the last element of a header that is a list.
func lastOf(values []string) string {
	if len(values) == 0 {
		return ""
	}
	value := values[len(values)-1]
	return strings.TrimSpace(value[strings.LastIndexByte(value, ',')+1:])
}

// hasToken tells whether a header that is a list has an element, in whatever case.
func hasToken(values []string, token string) bool {
	for _, value := range values {
		for element := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(strings.TrimSpace(element), token) {
				return true
			}
		}
	}
	return false
}
