package gateway

import (
	"context"
	"encoding/hex"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"strings"
)

// inbound is the context of one request.
type inbound struct {
	id        string // the request id
	client    string // the client's IP address
	scheme    string // "http" or "https": how the client reached the gateway, or the proxy in front of it
	host      string // the host, and the port if there is one, that the client asked for
	websocket bool   // the client asks for a WebSocket

	traceparent string // of the gateway's own span, to be passed on; empty: what the client sent goes on

	body    *requestBody   // nil if there is no body
	replica *replica       // the replica that answered; nil for tunnels
	tunnel  *tunnelRequest // nil for requests to the API
}

type inboundKey struct{}

func withInbound(ctx context.Context, in *inbound) context.Context {
	return context.WithValue(ctx, inboundKey{}, in)
}

func inboundFrom(ctx context.Context) *inbound {
	in, _ := ctx.Value(inboundKey{}).(*inbound)
	return in
}

// newInbound describes a request. It uses X-Forwarded-* only if a trusted proxy sent the request.
func (c *Config) newInbound(r *http.Request) *inbound {
	in := &inbound{id: requestID(r.Header), scheme: "http", host: cleanHost(r.Host)}
	if r.TLS != nil {
		in.scheme = "https"
	}
	if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		address := peer.Addr().Unmap()
		in.client = address.String()
		if c.isTrustedProxy(address) {
			c.applyForwarded(in, r.Header)
		}
	}
	h := r.Header
	in.websocket = strings.EqualFold(h.Get("Upgrade"), "websocket") && hasElement(h["Connection"], "upgrade")
	return in
}

// applyForwarded takes over a trusted proxy's X-Forwarded-* headers. The client's address is the last one that is not a
// trusted proxy's: the client may have made up those before it.
func (c *Config) applyForwarded(in *inbound, h http.Header) {
	chain := strings.Split(strings.Join(h["X-Forwarded-For"], ","), ",")
	for i := len(chain) - 1; i >= 0; i-- {
		address, err := netip.ParseAddr(strings.TrimSpace(chain[i]))
		if err != nil {
			break
		}
		address = address.Unmap()
		in.client = address.String()
		if !c.isTrustedProxy(address) {
			break
		}
	}
	switch proto := strings.ToLower(lastElement(h["X-Forwarded-Proto"])); proto {
	case "http", "https":
		in.scheme = proto
	}
	if host := lastElement(h["X-Forwarded-Host"]); host != "" && cleanHost(host) == host {
		in.host = host
	}
}

// publicScheme returns the scheme with which browsers reach the gateway.
func (in *inbound) publicScheme(c *Config) string {
	if c.publicScheme != "" {
		return c.publicScheme
	}
	return in.scheme
}

// setForwarded replaces all forwarding headers by the gateway's own, with exactly one value each.
func (in *inbound) setForwarded(h http.Header, scheme string) {
	for name := range h {
		if isForwarding(name) {
			delete(h, name)
		}
	}
	h["X-Forwarded-For"] = []string{in.client}
	h["X-Forwarded-Proto"] = []string{scheme}
	h["X-Forwarded-Host"] = []string{in.host}
}

// isForwarding reports whether a header says who sent the request, which is the gateway's to say. Many servers read `_`
// in a name as `-`.
func isForwarding(name string) bool {
	if strings.Contains(name, "_") {
		name = http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))
	}
	return name == "Forwarded" || name == "X-Real-Ip" ||
		strings.HasPrefix(name, "X-Forwarded-") || strings.HasPrefix(name, "X-Shoal-Gateway-")
}

// requestID returns the client's request id if there is exactly one and it is valid (REQUEST_ID in shoal.model.http),
// else a new one.
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

// cleanHost returns the host if it is safe in redirects and pages, else "localhost". Only the client that sent an
// unsafe host sees the latter.
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

// lastElement returns the last element of a header that is a list.
func lastElement(values []string) string {
	if len(values) == 0 {
		return ""
	}
	value := values[len(values)-1]
	return strings.TrimSpace(value[strings.LastIndexByte(value, ',')+1:])
}

// hasElement reports whether a header that is a list has the element, in upper or lower case.
func hasElement(values []string, wanted string) bool {
	for _, value := range values {
		for element := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(strings.TrimSpace(element), wanted) {
				return true
			}
		}
	}
	return false
}
