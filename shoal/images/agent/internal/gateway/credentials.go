package gateway

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
)

const (
	connectHeader    = "X-Shoal-Connect-Token"
	connectParameter = "shoal_token"
	connectCookie    = "shoal_tunnel"
	sessionCookie    = "shoal_session" // and a port after it: a browser's session with the dashboard

	subprotocol       = "shoal.v1"
	tokenPrefix       = "shoal_tk-"
	bearerSubprotocol = "shoal.bearer." // followed by an API token: browsers cannot send headers with a WebSocket

	maxConnectCookies = 4 // pages of the same origin may have set others
)

// credentials are a request's connect tokens and API token.
type credentials struct {
	header, query string // connect tokens
	cookies       []string
	trustCookies  bool
	apiToken      string
}

func (c *credentials) empty() bool {
	return c.header == "" && c.query == "" && len(c.cookies) == 0 && c.apiToken == ""
}

// connectTokens returns the connect tokens to be tried, in this order.
func (c *credentials) connectTokens() []string {
	tokens := make([]string, 0, 2+len(c.cookies))
	for _, token := range []string{c.header, c.query} {
		if token != "" {
			tokens = append(tokens, token)
		}
	}
	if c.trustCookies {
		tokens = append(tokens, c.cookies...)
	}
	return tokens
}

// extractCredentials removes all of Shoal's credentials from the headers, needed or not: a sandbox must not see them.
// echoSubprotocol is true if the client offered the API's subprotocol along with a token.
func extractCredentials(h http.Header) (c credentials, echoSubprotocol bool) {
	c.header = h.Get(connectHeader)
	delete(h, connectHeader)
	c.cookies = extractCookies(h)
	c.apiToken = extractAuthorization(h)
	token, echoSubprotocol := extractSubprotocols(h)
	if c.apiToken == "" {
		c.apiToken = token
	}
	return c, echoSubprotocol
}

// extractAuthorization returns the first header's API token. Others, and what a proxy may have made of several, are not
// accepted, and removed all the same.
func extractAuthorization(h http.Header) string {
	values := h["Authorization"]
	if len(values) == 0 {
		return ""
	}
	token, found := bearer(values[0])
	if !found {
		token = ""
	}
	values = slices.DeleteFunc(values, func(value string) bool { return strings.Contains(value, tokenPrefix) })
	if len(values) > 0 {
		h["Authorization"] = values
	} else {
		delete(h, "Authorization")
	}
	return token
}

func extractCookies(h http.Header) (ours []string) {
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
			} else if pair != "" && !isSessionCookie(name) {
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

// isSessionCookie reports whether a cookie is the dashboard's. A tunnel by path shares its address.
func isSessionCookie(name string) bool {
	return strings.HasPrefix(strings.TrimPrefix(strings.TrimSpace(name), "__Host-"), sessionCookie)
}

// extractSubprotocols removes the API's subprotocols from a WebSocket's offer if an API token is among them.
// echoSubprotocol is true if the client also offered the API's subprotocol itself.
func extractSubprotocols(h http.Header) (token string, echoSubprotocol bool) {
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
			echoSubprotocol = true
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
	return token, echoSubprotocol
}

// extractQueryToken removes connect tokens from a query and returns the first one.
func extractQueryToken(query string) (kept, token string) {
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

// bearer returns the API token (shoal.model.access) in an Authorization header. Any other authorization is for the
// application in the sandbox.
func bearer(value string) (string, bool) {
	kind, token, _ := strings.Cut(strings.TrimSpace(value), " ")
	token = strings.TrimSpace(token)
	return token, strings.EqualFold(kind, "bearer") && isAPIToken(token)
}

func isAPIToken(text string) bool {
	const parts, checksum = 16 + 1 + 32, 6 // old tokens have no checksum
	rest, found := strings.CutPrefix(text, tokenPrefix)
	if !found || (len(rest) != parts && len(rest) != parts+checksum) || rest[16] != '_' {
		return false
	}
	for i := range len(rest) {
		c := rest[i]
		isUpper := i >= parts && c >= 'A' && c <= 'Z'
		if i != 16 && (c < '0' || c > '9') && (c < 'a' || c > 'z') && !isUpper {
			return false
		}
	}
	return true
}

// trustCookies reports whether the request comes from one of the tunnel's own pages or from the browser's user.
// Browsers send cookies with the requests of other sites' pages too. origin is the tunnel's.
func trustCookies(r *http.Request, websocket bool, origin string) bool {
	origins := r.Header["Origin"]
	if len(origins) > 0 && origins[0] != origin {
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
