package gateway

import (
	"encoding/base64"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"shoal/agent/internal/fault"
)

const (
	maxHeaderBytes = 64 << 10 // net/http's own bound; beyond it the client gets its plain 431
	maxURL         = 8 << 10
	maxHeaders     = 100
	maxHeadersSize = 16 << 10
)

// checkRequest returns what is wrong with any request, whatever it is for; nil where nothing is.
func checkRequest(r *http.Request) *problem {
	if len(r.RequestURI) > maxURL {
		return refused(http.StatusRequestURITooLong, "its URL has more than 8 KiB; send less, or send it in a body")
	}
	count, size := 0, 0
	for name, values := range r.Header {
		count += len(values)
		for _, value := range values {
			size += len(name) + len(value) + len(": \r\n")
		}
	}
	if count > maxHeaders || size > maxHeadersSize {
		return refused(http.StatusRequestHeaderFieldsTooLarge, "its headers have more than 16 KiB, or are more than 100; send fewer")
	}
	if r.Method == http.MethodConnect {
		p := refused(http.StatusMethodNotAllowed, "this is no proxy: CONNECT is not possible")
		p.headers = map[string]string{"Allow": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"}
		return p
	}
	return nil
}

// checkHandshake returns what is wrong with a request for a WebSocket; nil where nothing is.
func checkHandshake(r *http.Request) *problem {
	if r.Method != http.MethodGet {
		p := refused(http.StatusMethodNotAllowed, "a WebSocket is opened by GET")
		p.headers = map[string]string{"Allow": "GET"}
		return p
	}
	if r.ContentLength != 0 {
		return newProblem(fault.InvalidRequest, "a WebSocket's handshake has no body")
	}
	if versions := r.Header["Sec-Websocket-Version"]; len(versions) != 1 || versions[0] != "13" {
		p := refused(http.StatusUpgradeRequired, "a WebSocket's handshake has the header Sec-WebSocket-Version: 13")
		p.headers = map[string]string{"Sec-WebSocket-Version": "13", "Upgrade": "websocket", "Connection": "Upgrade"}
		return p
	}
	if keys := r.Header["Sec-Websocket-Key"]; len(keys) != 1 || !isHandshakeKey(keys[0]) {
		return newProblem(fault.InvalidRequest, "a WebSocket's handshake has one header Sec-WebSocket-Key: 16 bytes in base64")
	}
	return nil
}

func isHandshakeKey(text string) bool {
	key, err := base64.StdEncoding.DecodeString(text)
	return err == nil && len(key) == 16
}

// checkLocal refuses, with authentication off, what a web page from elsewhere makes a browser on this machine send to a tunnel; the replicas do
// the same for the API (check_local). Its own host name may have been made to mean this machine (DNS rebinding), so the host must be a loopback
// name or the tunnels' own; and an Origin must be the very same host and port, for pages served out of sandboxes are foreign too.
func (c *Config) checkLocal(r *http.Request) *problem {
	name := r.Host
	if host, _, err := net.SplitHostPort(name); err == nil {
		name = host
	}
	name = strings.ToLower(strings.Trim(name, "[]"))
	below := c.TunnelDomain != "" && strings.HasSuffix(name, "."+c.TunnelDomain)
	if !below && !isLoopback(name) {
		return newProblem(fault.PermissionDenied, "this Host is not this machine; with authentication off, ask for 127.0.0.1 or localhost")
	}
	for _, origin := range r.Header["Origin"] {
		if _, from, _ := strings.Cut(origin, "://"); from != r.Host {
			return newProblem(fault.PermissionDenied, "the request comes from a page of another site; with authentication off that is refused")
		}
	}
	return nil
}

func isLoopback(name string) bool {
	name = strings.TrimSuffix(name, ".")
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return true
	}
	address, err := netip.ParseAddr(name)
	return err == nil && address.IsLoopback()
}
