// Package gateway is the front door of the HTTP API on a node: it speaks TLS, HTTP/1.1 and HTTP/2 with clients, passes what they ask to the API's
// replicas, and carries tunnels to ports in sandboxes itself.
//
// Its only state is the listening socket, which others hold too, and the directory of the replicas' sockets: it can be killed, started again,
// and run beside its successor. PROTOCOL.md is the manual.
//
//	gateway.go      the program: server, drain, end
//	listen.go       connections of clients
//	control.go      the node's orders
//	certificate.go  TLS
//	inbound.go      one request: who asks, how, under which id
//	response.go     an answer on its way to a client that may be slow
//	checks.go       what is checked of a request before anybody else sees it
//	body.go         its body on its way from a client that may be slow
//	problem.go      errors as documents and pages
//	replicas.go     which replicas there are
//	upstream.go     a request to one of them, or to another
//	api.go          the API's own requests
//	target.go       which tunnel a request is for
//	credentials.go  what it brings along to be let in
//	admission.go    who may
//	knowledge.go    what the API said of tunnels a moment ago
//	relay.go        a connection into a sandbox
//	tunnel.go       one request through a tunnel
//	rewrite.go      its answer made fit for the client
package gateway

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"time"
)

// Config is the one JSON line that a gateway reads from its standard input.
type Config struct {
	Listener       int      `json:"listener"`        // descriptor of the listening socket
	Control        string   `json:"control"`         // path of the control socket
	Replicas       string   `json:"replicas"`        // directory of the replicas' sockets
	TLSCert        string   `json:"tls_cert"`        // path; with TLSKey: TLS only
	TLSKey         string   `json:"tls_key"`         // path
	PublicURL      string   `json:"public_url"`      // how clients reach the API, where that is known
	TunnelDomain   string   `json:"tunnel_domain"`   // "": tunnels by path only
	TrustedProxies []string `json:"trusted_proxies"` // networks or addresses whose X-Forwarded-* are believed
	HeaderTimeoutS float64  `json:"header_timeout_s"`
	IdleTimeoutS   float64  `json:"idle_timeout_s"`
	DrainS         float64  `json:"drain_s"`     // how long requests may take to end once the gateway is to go
	IdleExitS      float64  `json:"idle_exit_s"` // 0: it runs without anybody at the control socket
	Auth           bool     `json:"auth"`        // without it only what this machine itself asks for is let through

	trusted      []netip.Prefix
	publicScheme string
}

const maxConfig = 64 << 10

// ReadConfig reads and checks the configuration.
func ReadConfig(r io.Reader) (Config, error) {
	c := Config{Listener: 3, HeaderTimeoutS: 10, IdleTimeoutS: 75, DrainS: 60, Auth: true}
	line, err := bufio.NewReader(io.LimitReader(r, maxConfig)).ReadBytes('\n')
	if err != nil && len(line) == 0 {
		return c, fmt.Errorf("the configuration must come as one JSON line on standard input: %w", err)
	}
	if err := json.Unmarshal(line, &c); err != nil {
		return c, fmt.Errorf("the configuration is not JSON: %w", err)
	}
	return c, c.check()
}

func (c *Config) check() error {
	if c.Listener < 3 {
		return fmt.Errorf("listener: %d is no descriptor of a socket", c.Listener)
	}
	if !filepath.IsAbs(c.Control) || !filepath.IsAbs(c.Replicas) {
		return fmt.Errorf("control and replicas: give absolute paths")
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return fmt.Errorf("tls_cert and tls_key: give both or neither")
	}
	if c.HeaderTimeoutS <= 0 || c.IdleTimeoutS <= 0 || c.DrainS < 0 || c.IdleExitS < 0 {
		return fmt.Errorf("header_timeout_s, idle_timeout_s, drain_s, idle_exit_s: give seconds")
	}
	if c.PublicURL != "" {
		parsed, err := url.Parse(c.PublicURL)
		if err != nil || (parsed.Scheme != "http" && parsed.Scheme != "https") {
			return fmt.Errorf("public_url: %q is no http or https URL", c.PublicURL)
		}
		c.publicScheme = parsed.Scheme
	}
	c.TunnelDomain = strings.ToLower(c.TunnelDomain)
	c.trusted = nil
	for _, text := range c.TrustedProxies {
		prefix, err := parseNetwork(text)
		if err != nil {
			return fmt.Errorf("trusted_proxies: %w", err)
		}
		c.trusted = append(c.trusted, prefix)
	}
	return nil
}

func parseNetwork(text string) (netip.Prefix, error) {
	if strings.Contains(text, "/") {
		prefix, err := netip.ParsePrefix(text)
		return prefix.Masked(), err
	}
	address, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Prefix{}, err
	}
	return address.Unmap().Prefix(address.Unmap().BitLen())
}

// trusts tells whether an address is one of a trusted proxy.
func (c *Config) trusts(address netip.Addr) bool {
	for _, prefix := range c.trusted {
		if prefix.Contains(address) {
			return true
		}
	}
	return false
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
