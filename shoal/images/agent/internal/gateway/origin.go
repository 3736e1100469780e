package gateway

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// localDomain is the domain of tunnels on this machine, if no other is set. Browsers resolve all names below localhost
// to the machine they run on, and each is an origin of its own. Other programs may not, so nothing but a browser is sent
// there.
const localDomain = "localhost"

// originWideHeaders affect a whole origin or more, which the API and all tunnels by path share.
var originWideHeaders = []string{
	"Accept-Ch", "Clear-Site-Data", "Critical-Ch", "Expect-Ct", "Nel", "Observe-Browsing-Topics", "Origin-Agent-Cluster",
	"Public-Key-Pins", "Public-Key-Pins-Report-Only", "Report-To", "Reporting-Endpoints", "Sec-Session-Registration",
	"Secure-Session-Registration", "Service-Worker-Allowed", "Set-Login", "Strict-Transport-Security",
	"Use-As-Dictionary", "X-Permitted-Cross-Domain-Policies",
}

// sandboxPolicy is a Content-Security-Policy that gives a page an opaque origin. Its scripts run, but they share neither
// cookies, storage, service workers nor windows with the API or other pages.
const sandboxPolicy = "sandbox allow-downloads allow-forms allow-modals allow-orientation-lock allow-pointer-lock" +
	" allow-popups allow-popups-to-escape-sandbox allow-presentation allow-scripts"

// confine keeps a response of a tunnel by path from affecting others of its origin.
func (t *tunnels) confine(r *http.Response, request *tunnelRequest) {
	for _, name := range originWideHeaders {
		delete(r.Header, name)
	}
	if !t.config.Confine {
		return
	}
	if request.fromBrowser {
		// A browser would ask for a password, and then send it to every page of the origin that asks alike.
		delete(r.Header, "Www-Authenticate")
	}
	r.Header.Add("Content-Security-Policy", sandboxPolicy)
}

// domain returns the domain below which tunnels have host names.
func (c *Config) domain() string {
	if c.TunnelDomain != "" {
		return c.TunnelDomain
	}
	return localDomain
}

// ownOrigin returns the URL of the tunnel's own host if a browser navigates to the tunnel by path, else "". The token
// in it sets the cookie there.
func (t *tunnels) ownOrigin(r *http.Request, in *inbound) string {
	request := in.tunnel
	if request.target.prefix == "" || !t.config.Confine || !isSafe(r.Method) || r.Header.Get("Sec-Fetch-Mode") != "navigate" {
		return ""
	}
	switch r.Header.Get("Sec-Fetch-Dest") {
	case "document":
	case "iframe", "frame":
		if request.authorization.token != "" {
			return "" // within a page of another site, browsers would not keep the cookie
		}
	default:
		return ""
	}
	name, port := splitHost(in.host)
	if t.config.TunnelDomain == "" {
		if request.scheme != "http" || (name != "localhost" && name != "127.0.0.1" && name != "[::1]") {
			return ""
		}
	} else if t.config.PublicURL != "" {
		if public, err := url.Parse(t.config.PublicURL); err == nil {
			port = public.Port()
		}
	}
	host := strconv.Itoa(request.target.port) + "-" + request.target.sandbox + "." + t.config.domain()
	if port != "" {
		host += ":" + port
	}
	query := request.query
	if token := request.authorization.token; token != "" {
		query = strings.TrimPrefix(query+"&"+connectParameter+"="+url.QueryEscape(token), "&")
	}
	location := request.scheme + "://" + host + sameHostPath(request.path)
	if query != "" {
		location += "?" + query
	}
	return location
}

// splitHost splits off the port, or "" if there is none, and puts the name in lower case.
func splitHost(host string) (name, port string) {
	host = strings.ToLower(host)
	if i := strings.LastIndexByte(host, ':'); i >= 0 && strings.Trim(host[i+1:], "0123456789") == "" {
		return host[:i], host[i+1:]
	}
	return host, ""
}
