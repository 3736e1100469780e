package gateway

import (
	"net/http"
	"strconv"
	"strings"
)

// target is a port in a sandbox. prefix is the part of the path that names it, or empty if the host name does.
type target struct {
	sandbox string
	port    int
	prefix  string
}

const tunnelPath = "/t/"

// targetOf returns the tunnel that a request is for, by its host or its path (shoal.model.tunnels).
func (c *Config) targetOf(r *http.Request, in *inbound) (target, bool) {
	if found, ok := targetOfHost(in.host, c.domain()); ok {
		return found, true
	}
	return targetOfPath(rawPath(r))
}

// targetOfHost parses `<port>-<sandbox>.<domain>`, with or without the gateway's port after it.
func targetOfHost(host, domain string) (target, bool) {
	host, _ = splitHost(host)
	label, rest, found := strings.Cut(strings.TrimSuffix(host, "."), ".")
	if !found || rest != domain {
		return target{}, false
	}
	number, sandbox, found := strings.Cut(label, "-")
	if !found || !isSandboxID(sandbox) {
		return target{}, false
	}
	port, ok := parsePort(number)
	return target{sandbox: sandbox, port: port}, ok
}

// targetOfPath parses `/t/<sandbox>/<port>`, followed by nothing or a slash.
func targetOfPath(path string) (target, bool) {
	rest, found := strings.CutPrefix(path, tunnelPath)
	if !found {
		return target{}, false
	}
	sandbox, rest, found := strings.Cut(rest, "/")
	if !found || !isSandboxID(sandbox) {
		return target{}, false
	}
	number, _, _ := strings.Cut(rest, "/")
	port, ok := parsePort(number)
	return target{sandbox: sandbox, port: port, prefix: path[:len(tunnelPath)+len(sandbox)+1+len(number)]}, ok
}

func isSandboxID(text string) bool {
	name, found := strings.CutPrefix(text, "sb-")
	if !found || len(name) == 0 || len(name) > 32 {
		return false
	}
	for i := range len(name) {
		if c := name[i]; (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

func parsePort(text string) (int, bool) {
	if len(text) == 0 || len(text) > 5 || text[0] == '0' || strings.Trim(text, "0123456789") != "" {
		return 0, false
	}
	port, err := strconv.Atoi(text)
	return port, err == nil && port <= 65535
}

// rawPath returns the request's path as it was sent.
func rawPath(r *http.Request) string {
	if !strings.HasPrefix(r.RequestURI, "/") {
		return r.URL.EscapedPath() // the URL is absolute, as in a request to a proxy
	}
	path, _, _ := strings.Cut(r.RequestURI, "?")
	return path
}

// isBelow reports whether a path is the prefix or below it.
func isBelow(path, prefix string) bool {
	rest, found := strings.CutPrefix(path, prefix)
	return found && (rest == "" || rest[0] == '/')
}
