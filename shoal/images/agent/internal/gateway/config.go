// Package gateway is the front end of the HTTP API on a node. It serves TLS, HTTP/1.1 and HTTP/2 to clients, forwards
// API requests to the API's replicas, and proxies tunnels to ports in sandboxes.
//
// Its only state is the listening socket, which other processes hold too, and the directory of the replicas' sockets.
// It can be killed, restarted, and run beside its successor. PROTOCOL.md is the manual.
//
//	gateway.go      the program: server, drain, stop
//	counters.go     what it counts
//	traces.go       its span of each request
//	listen.go       client connections
//	control.go      the control socket
//	certificate.go  TLS certificates
//	inbound.go      the context of one request: client, host, request id
//	checks.go       the checks of every request
//	body.go         request bodies
//	response.go     responses, and connections after a protocol switch
//	problem.go      errors as problem documents and HTML pages
//	replicas.go     the list of replicas
//	upstream.go     sending and retrying requests to replicas
//	api.go          requests to the API
//	target.go       parsing which tunnel a request is for
//	credentials.go  connect tokens and API tokens in a request
//	authorizer.go   who may use a tunnel
//	lookup.go       asking the API about tunnels, with a cache
//	relay.go        connections into sandboxes
//	conn.go         connections with a write deadline
//	tunnel.go       requests to tunnels
//	rewrite.go      responses from tunnels
//	origin.go       pages from tunnels, and whose origin they are
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

	"shoal/agent/internal/spans"
)

// Config is the one JSON line that a gateway reads from its standard input.
type Config struct {
	Listener       int      `json:"listener"`        // file descriptor of the listening socket
	Control        string   `json:"control"`         // path of the control socket
	Replicas       string   `json:"replicas"`        // directory of the replicas' sockets
	TLSCert        string   `json:"tls_cert"`        // path; if set, the gateway serves TLS only
	TLSKey         string   `json:"tls_key"`         // path
	PublicURL      string   `json:"public_url"`      // how clients reach the API; may be empty
	TunnelDomain   string   `json:"tunnel_domain"`   // empty: tunnels by path, and below localhost for browsers here
	TrustedProxies []string `json:"trusted_proxies"` // networks or addresses whose X-Forwarded-* headers are used
	HeaderTimeoutS float64  `json:"header_timeout_s"`
	IdleTimeoutS   float64  `json:"idle_timeout_s"`
	DrainS         float64  `json:"drain_s"`     // how long requests may still take when the gateway drains
	IdleExitS      float64  `json:"idle_exit_s"` // how long to run without a control connection; 0: for ever
	Auth           bool     `json:"auth"`        // false: only requests from this machine may use tunnels
	Confine        bool     `json:"confine"`     // pages of tunnels by path get an opaque origin
	LogFormat      string   `json:"log_format"`  // as logs.Use takes it

	Traces spans.Config `json:"traces"`

	trusted      []netip.Prefix
	publicScheme string
}

const maxConfig = 64 << 10

// ReadConfig reads and checks the configuration.
func ReadConfig(r io.Reader) (Config, error) {
	c := Config{Listener: 3, HeaderTimeoutS: 10, IdleTimeoutS: 75, DrainS: 60, Auth: true, Confine: true}
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
		return fmt.Errorf("listener: %d is not the descriptor of a socket", c.Listener)
	}
	if !filepath.IsAbs(c.Control) || !filepath.IsAbs(c.Replicas) {
		return fmt.Errorf("control and replicas: give absolute paths")
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return fmt.Errorf("tls_cert and tls_key: give both or neither")
	}
	if c.HeaderTimeoutS <= 0 || c.IdleTimeoutS <= 0 || c.DrainS < 0 || c.IdleExitS < 0 {
		return fmt.Errorf("header_timeout_s and idle_timeout_s must be positive, drain_s and idle_exit_s not negative")
	}
	if c.PublicURL != "" {
		parsed, err := url.Parse(c.PublicURL)
		if err != nil || (parsed.Scheme != "http" && parsed.Scheme != "https") {
			return fmt.Errorf("public_url: %q is not an http or https URL", c.PublicURL)
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

// isTrustedProxy reports whether an address is a trusted proxy's.
func (c *Config) isTrustedProxy(address netip.Addr) bool {
	for _, prefix := range c.trusted {
		if prefix.Contains(address) {
			return true
		}
	}
	return false
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
