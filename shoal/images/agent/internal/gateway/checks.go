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
	maxHeaderBytes = 64 << 10 // beyond this net/http answers with its own plain 431
	maxURL         = 8 << 10
	maxHeaders     = 100
	maxHeadersSize = 16 << 10
)

// checkRequest checks any request, to the API or to a tunnel. It returns nil for a valid one.
func checkRequest(r *http.Request) *problem {
	if len(r.RequestURI) > maxURL {
		return invalidRequest(http.StatusRequestURITooLong,
			"the URL is longer than 8 KiB; send less, or send it in a body")
	}
	count, size := 0, 0
	for name, values := range r.Header {
		count += len(values)
		for _, value := range values {
			size += len(name) + len(value) + len(": \r\n")
		}
	}
	if count > maxHeaders || size > maxHeadersSize {
		return invalidRequest(http.StatusRequestHeaderFieldsTooLarge,
			"the headers are larger than 16 KiB, or more than 100; send fewer")
	}
	if r.Method == http.MethodConnect {
		p := invalidRequest(http.StatusMethodNotAllowed, "CONNECT is not supported: this is not a proxy")
		p.headers = map[string]string{"Allow": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"}
		return p
	}
	return nil
}

// checkHandshake checks a WebSocket handshake. It returns nil for a valid one.
func checkHandshake(r *http.Request) *problem {
	if r.Method != http.MethodGet {
		p := invalidRequest(http.StatusMethodNotAllowed, "a WebSocket handshake must be a GET request")
		p.headers = map[string]string{"Allow": "GET"}
		return p
	}
	if r.ContentLength != 0 {
		return newProblem(fault.InvalidRequest, "a WebSocket handshake must not have a body")
	}
	if versions := r.Header["Sec-Websocket-Version"]; len(versions) != 1 || versions[0] != "13" {
		p := invalidRequest(http.StatusUpgradeRequired,
			"a WebSocket handshake must have the header Sec-WebSocket-Version: 13")
		p.headers = map[string]string{"Sec-WebSocket-Version": "13", "Upgrade": "websocket", "Connection": "Upgrade"}
		return p
	}
	if keys := r.Header["Sec-Websocket-Key"]; len(keys) != 1 || !isHandshakeKey(keys[0]) {
		return newProblem(fault.InvalidRequest,
			"a WebSocket handshake must have one header Sec-WebSocket-Key: 16 bytes in base64")
	}
	return nil
}

func isHandshakeKey(text string) bool {
	key, err := base64.StdEncoding.DecodeString(text)
	return err == nil && len(key) == 16
}

// checkLocal protects tunnels while authentication is off: it refuses requests that a web page from elsewhere makes a
// browser on this machine send. The replicas do the same for the API (check_local). The host must be a loopback name or
// a tunnel's: an attacker may have pointed its own name at this machine (DNS rebinding). An Origin must have
// exactly the same host and port: pages from sandboxes are foreign as well.
func (c *Config) checkLocal(r *http.Request) *problem {
	name := r.Host
	if host, _, err := net.SplitHostPort(name); err == nil {
		name = host
	}
	name = strings.ToLower(strings.Trim(name, "[]"))
	isBelow := strings.HasSuffix(name, "."+c.domain())
	if !isBelow && !isLoopback(name) {
		return newProblem(fault.PermissionDenied,
			"this Host is not this machine; with authentication off, ask for 127.0.0.1 or localhost")
	}
	for _, origin := range r.Header["Origin"] {
		if _, from, _ := strings.Cut(origin, "://"); from != r.Host {
			return newProblem(fault.PermissionDenied,
				"the request comes from a page of another site; with authentication off that is refused")
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
