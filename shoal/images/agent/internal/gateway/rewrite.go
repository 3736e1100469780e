package gateway

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// originWide are headers with an effect on a whole origin, which by path all tunnels and the API share. What a page does there with scripts is
// not ours to prevent; that a single header does it is.
var originWide = []string{
	"Service-Worker-Allowed", "Clear-Site-Data", "Strict-Transport-Security", "Public-Key-Pins", "Origin-Agent-Cluster", "Nel",
	"Report-To", "Reporting-Endpoints", "Expect-Ct",
}

// sandboxed gives a page no origin at all.
const sandboxed = "sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts"

// fitAnswer makes what a server in a sandbox answers fit for the client: paths and cookies below the tunnel's prefix, nothing that reaches
// beyond.
func (t *tunnels) fitAnswer(r *http.Response) error {
	in := inboundOf(r.Request.Context())
	request := in.tunnel
	count := 0
	for _, values := range r.Header {
		count += len(values)
	}
	if count > maxAnswerHeaders || r.StatusCode > 599 {
		return errNoHTTP
	}
	h := r.Header
	delete(h, "Alt-Svc")      // it would lead clients past us
	delete(h, "X-Request-Id") // these are ours to give
	delete(h, "Date")
	prefix := request.target.prefix
	fitCookies(h, prefix)
	if prefix != "" {
		for _, name := range originWide {
			delete(h, name)
		}
		for _, name := range []string{"Location", "Content-Location"} {
			if values := h[name]; len(values) > 0 {
				h[name] = []string{fitLocation(values[0], request.target, in.host)}
			}
		}
		if t.config.TunnelDomain != "" && r.StatusCode != http.StatusSwitchingProtocols {
			h.Add("Content-Security-Policy", sandboxed)
		}
	}
	if r.StatusCode == http.StatusSwitchingProtocols && request.acceptsAPI && h.Get("Sec-Websocket-Protocol") == "" {
		h.Set("Sec-Websocket-Protocol", subprotocol)
	}
	return nil
}

func fitCookies(h http.Header, prefix string) {
	given := h["Set-Cookie"]
	if len(given) == 0 {
		return
	}
	var kept []string
	for _, cookie := range given {
		if fit := fitCookie(cookie, prefix); fit != "" {
			kept = append(kept, fit)
		}
	}
	h["Set-Cookie"] = kept
}

// fitCookie is a cookie for this tunnel only: no `Domain`, and its path below the prefix. "" for one that would take the place of ours.
func fitCookie(cookie, prefix string) string {
	parts := strings.Split(cookie, ";")
	if name, _, _ := strings.Cut(parts[0], "="); strings.TrimSpace(name) == connectCookie {
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
			if !below(value, prefix) {
				value = prefix + value
			}
			attribute = "Path=" + value
		}
		kept = append(kept, attribute)
	}
	return strings.Join(kept, "; ")
}

// fitLocation is a URL of the server's own, under the tunnel's prefix. One that leads elsewhere stays as it is. host is what the client calls us.
func fitLocation(text string, where target, host string) string {
	text = strings.TrimSpace(text)
	parsed, err := url.Parse(text)
	if err != nil {
		return text
	}
	rest := text
	switch {
	case parsed.Host != "":
		if (parsed.Scheme != "" && parsed.Scheme != "http" && parsed.Scheme != "https") || parsed.User != nil || !isOwnHost(parsed.Host, where, host) {
			return text
		}
		rest = text[strings.Index(text, "//")+2+len(parsed.Host):]
	case parsed.Scheme != "" || !strings.HasPrefix(text, "/"):
		return text
	}
	if !strings.HasPrefix(rest, "/") {
		rest = "/" + rest
	}
	if path, _, _ := strings.Cut(rest, "?"); !below(strings.SplitN(path, "#", 2)[0], where.prefix) {
		rest = where.prefix + rest
	}
	return rest
}

func isOwnHost(named string, where target, host string) bool {
	if strings.EqualFold(named, host) {
		return true
	}
	for _, name := range []string{"localhost", "127.0.0.1", "[::1]"} {
		if strings.EqualFold(named, name+":"+strconv.Itoa(where.port)) {
			return true
		}
	}
	return false
}

// escapeRest escapes what of a path may not stand in one, and leaves the rest as it was sent. An empty path is "/".
func escapeRest(path string) string {
	if path == "" {
		return "/"
	}
	const unreserved = "-._~!$&'()*+,;=:@/%[]"
	var out strings.Builder
	for i := range len(path) {
		c := path[i]
		if ('a' <= c && c <= 'z') || ('A' <= c && c <= 'Z') || ('0' <= c && c <= '9') || strings.IndexByte(unreserved, c) >= 0 {
			out.WriteByte(c)
			continue
		}
		const digits = "0123456789ABCDEF"
		out.Write([]byte{'%', digits[c>>4], digits[c&15]})
	}
	return out.String()
}
