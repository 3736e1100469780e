package gateway

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// modifyResponse makes a response of a server in a sandbox safe for the client: paths and cookies stay below the
// tunnel's prefix, and headers that affect more than the tunnel are removed.
func (t *tunnels) modifyResponse(r *http.Response) error {
	in := inboundFrom(r.Request.Context())
	request := in.tunnel
	count := 0
	for _, values := range r.Header {
		count += len(values)
	}
	if count > maxResponseHeaders || r.StatusCode > 599 {
		return errInvalidResponse
	}
	h := r.Header
	delete(h, "Alt-Svc")      // it would direct clients past the gateway
	delete(h, "X-Request-Id") // the gateway sets these two itself
	delete(h, "Date")
	prefix := request.target.prefix
	rewriteCookies(h, prefix)
	if prefix != "" {
		t.confine(r, request)
		for _, name := range []string{"Location", "Content-Location"} {
			if values := h[name]; len(values) > 0 {
				h[name] = []string{rewriteLocation(values[0], request.target, in.host)}
			}
		}
	}
	if r.StatusCode == http.StatusSwitchingProtocols && request.echoSubprotocol && h.Get("Sec-Websocket-Protocol") == "" {
		h.Set("Sec-Websocket-Protocol", subprotocol)
	}
	return nil
}

func rewriteCookies(h http.Header, prefix string) {
	given := h["Set-Cookie"]
	if len(given) == 0 {
		return
	}
	var kept []string
	for _, cookie := range given {
		if rewritten := rewriteCookie(cookie, prefix); rewritten != "" {
			kept = append(kept, rewritten)
		}
	}
	h["Set-Cookie"] = kept
}

// rewriteCookie restricts a cookie to this tunnel: it drops `Domain` and puts the path below the prefix. It returns ""
// for a cookie that would replace Shoal's own.
func rewriteCookie(cookie, prefix string) string {
	parts := strings.Split(cookie, ";")
	// A browser sends a cookie without a name as its bare value, which would then read like one that has a name.
	name, _, _ := strings.Cut(strings.TrimLeft(parts[0], "= \t"), "=")
	if strings.TrimSpace(name) == connectCookie || isSessionCookie(name) {
		return ""
	}
	kept := []string{strings.TrimSpace(parts[0])}
	for _, attribute := range parts[1:] {
		attribute = strings.TrimSpace(attribute)
		name, value, _ := strings.Cut(attribute, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		if strings.EqualFold(name, "domain") {
			continue
		}
		if strings.EqualFold(name, "path") && prefix != "" {
			if !strings.HasPrefix(value, "/") {
				value = "/"
			}
			if !isBelow(value, prefix) {
				value = prefix + value
			}
			attribute = "Path=" + value
		}
		kept = append(kept, attribute)
	}
	return strings.Join(kept, "; ")
}

// rewriteLocation puts a URL of the server's own below the tunnel's prefix. It leaves other URLs as they are. host is
// the one that the client asked for.
func rewriteLocation(text string, dest target, host string) string {
	text = strings.TrimSpace(text)
	parsed, err := url.Parse(text)
	if err != nil {
		return text
	}
	rest := text
	switch {
	case parsed.Host != "":
		isWeb := parsed.Scheme == "" || parsed.Scheme == "http" || parsed.Scheme == "https"
		if !isWeb || parsed.User != nil || !isOwnHost(parsed.Host, dest, host) {
			return text
		}
		rest = text[strings.Index(text, "//")+2+len(parsed.Host):]
	case parsed.Scheme != "" || !strings.HasPrefix(text, "/"):
		return text
	}
	if !strings.HasPrefix(rest, "/") {
		rest = "/" + rest
	}
	if path, _, _ := strings.Cut(rest, "?"); !isBelow(strings.SplitN(path, "#", 2)[0], dest.prefix) {
		rest = dest.prefix + rest
	}
	return rest
}

func isOwnHost(named string, dest target, host string) bool {
	if strings.EqualFold(named, host) {
		return true
	}
	for _, name := range []string{"localhost", "127.0.0.1", "[::1]"} {
		if strings.EqualFold(named, name+":"+strconv.Itoa(dest.port)) {
			return true
		}
	}
	return false
}

// escapePath escapes what is not allowed in a path, and leaves the rest as it was sent. An empty path becomes "/".
func escapePath(path string) string {
	if path == "" {
		return "/"
	}
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'()*+,;=:@/%[]"
	const digits = "0123456789ABCDEF"
	var out strings.Builder
	for i := range len(path) {
		if c := path[i]; strings.IndexByte(allowed, c) >= 0 {
			out.WriteByte(c)
		} else {
			out.Write([]byte{'%', digits[c>>4], digits[c&15]})
		}
	}
	return out.String()
}
