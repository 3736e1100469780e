// Package token checks signed tokens: which container their bearer may use, how, and until when.
//
//	base64url(payload) "." base64url(HMAC-SHA256(secret, payload)), no padding
//
// The controller signs them (shoal.model.grants). The relay and the gateway check them without asking the controller.
package token

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"shoal/agent/internal/fault"
)

// MaxSize bounds a token's length.
const MaxSize = 4 << 10

// Claims is the payload of a token.
type Claims struct {
	Sandbox string   `json:"sandbox"`
	Key     string   `json:"key"`
	Scopes  []string `json:"scopes"`
	Expires int64    `json:"exp"`
	Port    int      `json:"port"` // if not 0, the token is only for connections to this port
}

const (
	// ScopeTunnel lets its bearer connect to ports in the sandbox.
	ScopeTunnel = "tunnel"
	// ScopePass lets its bearer connect to a private exposed port.
	ScopePass = "pass"
)

// CheckDial returns an error if the claims do not allow a connection to the port in the sandbox.
func (c *Claims) CheckDial(port int) error {
	if !slices.Contains(c.Scopes, ScopeTunnel) {
		return denied("connecting to a port needs the scope %s, which the token does not give", ScopeTunnel)
	}
	if c.Port != 0 && c.Port != port {
		return denied("the token is for port %d of the sandbox only, not for port %d", c.Port, port)
	}
	return nil
}

// CheckPass returns an error if the claims do not allow a connection to the private exposed port. Claims that allow
// dialling the port do.
func (c *Claims) CheckPass(port int) error {
	if c.Port == port && slices.Contains(c.Scopes, ScopePass) {
		return nil
	}
	return c.CheckDial(port)
}

// CheckRequests returns an error if the claims do not allow a connection that carries requests.
func (c *Claims) CheckRequests() error {
	if c.Port != 0 {
		return denied("the token is for connections to port %d of the sandbox only, not for requests", c.Port)
	}
	return nil
}

// ConnectKey stands in connect tokens in place of a container's key. They outlive the container, and no relay accepts
// them.
const ConnectKey = "http"

// errInvalid means that the text is not a token, or was signed with another secret.
var errInvalid = errors.New("invalid token")

// Check returns the claims of a relay's token that was signed with secret and has not expired. Otherwise it returns a
// fault `unauthenticated`.
func Check(secret []byte, text string, now time.Time) (Claims, error) {
	c, err := verify(secret, text)
	if err != nil || !ValidKey(c.Key) {
		return c, unauthenticated("it is malformed or has an invalid signature")
	}
	if now.Unix() >= c.Expires {
		return c, unauthenticated("it has expired: look the sandbox up again")
	}
	return c, nil
}

// CheckConnect returns the claims of a connect token for the http tunnel to a port of a sandbox. Otherwise it returns a
// fault `unauthenticated`.
func CheckConnect(secret []byte, text string, now time.Time, sandbox string, port int) (Claims, error) {
	c, err := verify(secret, text)
	if err != nil {
		return c, fault.New(fault.Unauthenticated, "the connect token is not one of this cluster's: ask for a new one")
	}
	if now.Unix() >= c.Expires {
		return c, fault.New(fault.Unauthenticated, "the connect token has expired: ask for a new one")
	}
	if c.Sandbox != sandbox || c.Port != port || c.Key != ConnectKey || !slices.Contains(c.Scopes, ScopeTunnel) {
		return c, fault.New(fault.Unauthenticated, "the connect token is for another tunnel: ask for one of this tunnel's own")
	}
	return c, nil
}

// verify checks a token's signature, and only then parses its payload.
func verify(secret []byte, text string) (Claims, error) {
	var c Claims
	head, tail, found := strings.Cut(text, ".")
	if !found || len(text) > MaxSize {
		return c, errInvalid
	}
	payload, err := base64.RawURLEncoding.DecodeString(head)
	if err != nil {
		return c, errInvalid
	}
	given, err := base64.RawURLEncoding.DecodeString(tail)
	if err != nil {
		return c, errInvalid
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write(payload)
	if !hmac.Equal(given, mac.Sum(nil)) { // takes constant time
		return c, errInvalid
	}
	if err := json.Unmarshal(payload, &c); err != nil || c.Port < 0 || c.Port > 65535 {
		return c, errInvalid
	}
	return c, nil
}

// ValidKey reports whether key is a valid key of a container. It becomes part of a path.
func ValidKey(key string) bool {
	if len(key) < 3 || len(key) > 34 || !strings.HasPrefix(key, "c-") {
		return false
	}
	for _, r := range key[2:] {
		if (r < '0' || r > '9') && (r < 'a' || r > 'z') {
			return false
		}
	}
	return true
}

func unauthenticated(why string) error {
	return &fault.Fault{Code: fault.Unauthenticated, Field: "token", Message: "token: " + why}
}

func denied(format string, args ...any) error {
	f := fault.New(fault.PermissionDenied, format, args...)
	f.Field = "token"
	return f
}

// AgentSecretSize is the length of an agent's secret.
const AgentSecretSize = sha256.Size

// AgentSecret is what the agent of the container shows to the relay (shoal.model.grants.agent_secret). It follows from
// the cluster's secret, so that a relay which was restarted knows it. It signs nothing: a token's payload begins with {.
func AgentSecret(secret []byte, key string) []byte {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte("agent " + key))
	return mac.Sum(nil)
}
