// Package relay is the data plane of a node: it admits clients by signed tokens and connects each to its container's
// agent.
//
// Its only state is the directories below its root, one per container. It can be killed and restarted at any time.
// PROTOCOL.md is the manual.
package relay

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"time"
)

// Config is the one JSON line that a relay reads from its standard input, so that the secret is in no process list.
type Config struct {
	Root      string  `json:"root"`
	Listen    string  `json:"listen"`
	Secret    string  `json:"secret"`
	Control   string  `json:"control"`
	IdleExitS float64 `json:"idle_exit_s"`
	TLS       bool    `json:"tls"`        // what clients send and get is encrypted
	LogFormat string  `json:"log_format"` // as logs.Use takes it

	secret   []byte
	identity *identity // with TLS
}

const maxConfig = 64 << 10

// ReadConfig reads and checks the configuration.
func ReadConfig(r io.Reader) (Config, error) {
	var c Config
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
	var err error
	if c.secret, err = hex.DecodeString(c.Secret); err != nil || len(c.secret) < 16 {
		return fmt.Errorf("secret: give at least 16 bytes in hexadecimal")
	}
	if !filepath.IsAbs(c.Root) || !filepath.IsAbs(c.Control) {
		return fmt.Errorf("root and control: give absolute paths")
	}
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	ip := net.ParseIP(host)
	if ip == nil || ip.IsUnspecified() {
		// On all addresses the relay could be reached from sandboxes and from the internet.
		return fmt.Errorf("listen: %q is not one address of this machine; the relay never listens on all addresses", host)
	}
	if c.TLS {
		c.identity, err = newIdentity(c.secret, host)
	}
	return err
}

// fingerprint is that of the relay's certificate, or empty without TLS.
func (c *Config) fingerprint() string {
	if c.identity == nil {
		return ""
	}
	return c.identity.fingerprint
}

func (c *Config) idleExit() time.Duration { return time.Duration(c.IdleExitS * float64(time.Second)) }
