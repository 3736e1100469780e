package gateway

import (
	"net/http"
	"net/url"
	"strings"
)

const (
	connectHeader    = "X-Shoal-Connect-Token"
	connectParameter = "shoal_token"
	connectCookie    = "shoal_tunnel"

	subprotocol       = "shoal.v1"
	bearerSubprotocol = "shoal.bearer." // and an API token: browsers can send no header with a WebSocket

	maxConnectCookies = 4 // a page of the same origin may have set others beside the right one
)

// credentials is what a request brings along to be let in.
type credentials struct {
	header, query string
	cookies       []string
	apiToken      string
	// ownPage: it comes from the tunnel's own pages or from the address bar, so that a browser's cookie says something about who wanted it.
	ownPage bool
}

func (c *credentials) none() bool {
	return c.header == "" && c.query == "" && len(c.cookies) == 0 && c.apiToken == ""
}

// takeCredentials takes out of the headers, which are the caller's own, what opens Shoal's own doors, needed or not: none of it goes into a
// sandbox.
func takeCredentials(h http.Header) (c credentials, acceptsAPI bool) {
	c.header = h.Get(connectHeader)
	delete(h, connectHeader)
	c.cookies = takeCookies(h)
	if token, found := bearer(h.Get("Authorization")); found {
		c.apiToken = token
		delete(h, "Authorization")
	}
	token, acceptsAPI := takeSubprotocols(h)
	if c.apiToken == "" {
		c.apiToken = token
	}
	return c, acceptsAPI
}

func takeCookies(h http.Header) (ours []string) {
	lines := h["Cookie"]
	if len(lines) == 0 {
		return nil
	}
	var kept []string
	for _, line := range lines {
		var others []string
		for pair := range strings.SplitSeq(line, ";") {
			pair = strings.TrimSpace(pair)
			if name, value, _ := strings.Cut(pair, "="); name == connectCookie {
				ours = append(ours, value)
			} else if pair != "" {
				others = append(others, pair)
			}
		}
		if len(others) > 0 {
			kept = append(kept, strings.Join(others, "; "))
		}
	}
	if len(kept) > 0 {
		h["Cookie"] = kept
	} else {
		delete(h, "Cookie")
	}
	return ours[:min(len(ours), maxConnectCookies)]
}

// takeSubprotocols takes the API's own from those that a WebSocket offers, where its token is among them. acceptsAPI: the client wants to
// hear of the API's own.
func takeSubprotocols(h http.Header) (token string, acceptsAPI bool) {
	lines := h["Sec-Websocket-Protocol"]
	if len(lines) == 0 {
		return "", false
	}
	var kept []string
	for name := range strings.SplitSeq(strings.Join(lines, ","), ",") {
		name = strings.TrimSpace(name)
		if given, found := strings.CutPrefix(name, bearerSubprotocol); found {
			if token == "" {
				token = given
			}
		} else if name == subprotocol {
			acceptsAPI = true
		} else if name != "" {
			kept = append(kept, name)
		}
	}
	if token == "" {
		return "", false
	}
	if len(kept) > 0 {
		h["Sec-Websocket-Protocol"] = []string{strings.Join(kept, ", ")}
	} else {
		delete(h, "Sec-Websocket-Protocol")
	}
	return token, acceptsAPI
}

// takeQuery takes connect tokens out of a query, and returns the first of them.
func takeQuery(query string) (kept, token string) {
	if query == "" {
		return "", ""
	}
	var others []string
	found := false
	for part := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(part, "=")
		if unescape(name) != connectParameter {
			others = append(others, part)
		} else if !found {
			found, token = true, unescape(value)
		}
	}
	return strings.Join(others, "&"), token
}

func unescape(text string) string {
	if plain, err := url.QueryUnescape(text); err == nil {
		return plain
	}
	return text
}

// bearer returns an API token of Shoal's (shoal.model.access); any other authorisation is the application's own business.
func bearer(value string) (string, bool) {
	kind, token, _ := strings.Cut(strings.TrimSpace(value), " ")
	token = strings.TrimSpace(token)
	return token, strings.EqualFold(kind, "bearer") && isAPIToken(token)
}

func isAPIToken(text string) bool {
	rest, found := strings.CutPrefix(text, "shoal_tk-")
	if !found || len(rest) != 16+1+32 || rest[16] != '_' {
		return false
	}
	for i := range len(rest) {
		if c := rest[i]; i != 16 && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

// isOwnPage tells whether the tunnel's own pages ask, or a person: browsers send cookies along for whoever makes them ask. own is the origin.
func isOwnPage(r *http.Request, websocket bool, own string) bool {
	origins := r.Header["Origin"]
	if len(origins) > 0 && origins[0] != own {
		return false
	}
	if websocket {
		return true
	}
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "same-origin", "none":
		return true
	}
	return isSafe(r.Method) && r.Header.Get("Sec-Fetch-Mode") == "navigate"
}

func isSafe(method string) bool { return method == http.MethodGet || method == http.MethodHead }
