// Package token checks the relay's tokens: who may talk to which container, for how long.
//
//	base64url(payload) "." base64url(HMAC-SHA256(secret, payload)), no padding
//
// The controller signs them (shoal.model.grants); the relay asks nobody.
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

// Claims is what a token says.
type Claims struct {
	Sandbox string   `json:"sandbox"`
	Key     string   `json:"key"`
	Scopes  []string `json:"scopes"`
	Expires int64    `json:"exp"`
	Port    int      `json:"port"` // not 0: for tunnels to that port only
}

const (
	// ScopeTunnel lets its bearer connect to ports in the sandbox.
	ScopeTunnel = "tunnel"
	// ScopePass lets its bearer through an exposed port that is private, as long as that is exposed.
	ScopePass = "pass"
)

// MayDial tells why the claims do not allow a connection to the port in the sandbox; nil where they do.
func (c *Claims) MayDial(port int) error {
	if !slices.Contains(c.Scopes, ScopeTunnel) {
		return deny("connecting to a port needs the scope %s, which the token does not give", ScopeTunnel)
	}
	if c.Port != 0 && c.Port != port {
		return deny("the token is for port %d of the sandbox only, not for port %d", c.Port, port)
	}
	return nil
}

// MayPass tells why the claims do not admit to the exposed port; nil where they do. Whoever may dial it may come this way, too.
func (c *Claims) MayPass(port int) error {
	if c.Port == port && slices.Contains(c.Scopes, ScopePass) {
		return nil
	}
	return c.MayDial(port)
}

// MaySpeak tells why the claims do not allow a connection that carries requests; nil where they do.
func (c *Claims) MaySpeak() error {
	if c.Port != 0 {
		return deny("the token is for connections to port %d of the sandbox only, not for requests", c.Port)
	}
	return nil
}

// ConnectKey is what connect tokens of tunnels say in the place of a container's key: they outlive it, and no relay takes them.
const ConnectKey = "http"

// errForged: the text is no token, or was signed with another secret.
var errForged = errors.New("forged")

// Check returns the claims of a relay's token that was signed with secret and has not expired; a fault `unauthenticated` otherwise.
func Check(secret []byte, text string, now time.Time) (Claims, error) {
	c, err := open(secret, text)
	if err != nil || !ValidKey(c.Key) {
		return c, refuse("it is malformed, or its signature is wrong")
	}
	if now.Unix() >= c.Expires {
		return c, refuse("it has expired: look the sandbox up again")
	}
	return c, nil
}

// CheckConnect returns the claims of a connect token for the http tunnel to a port of a sandbox; a fault `unauthenticated` otherwise.
func CheckConnect(secret []byte, text string, now time.Time, sandbox string, port int) (Claims, error) {
	c, err := open(secret, text)
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

// open returns what a token says. Nothing of its payload is looked at before its signature is known to be right.
func open(secret []byte, text string) (Claims, error) {
	var c Claims
	head, tail, found := strings.Cut(text, ".")
	if !found || len(text) > MaxSize {
		return c, errForged
	}
	payload, err := base64.RawURLEncoding.DecodeString(head)
	if err != nil {
		return c, errForged
	}
	given, err := base64.RawURLEncoding.DecodeString(tail)
	if err != nil {
		return c, errForged
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write(payload)
	if !hmac.Equal(given, mac.Sum(nil)) { // in constant time
		return c, errForged
	}
	if err := json.Unmarshal(payload, &c); err != nil || c.Port < 0 || c.Port > 65535 {
		return c, errForged
	}
	return c, nil
}

// ValidKey tells whether key may be a container's: it becomes a path.
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

func refuse(why string) error {
	return &fault.Fault{Code: fault.Unauthenticated, Field: "token", Message: "token: " + why}
}

func deny(format string, args ...any) error {
	f := fault.New(fault.PermissionDenied, format, args...)
	f.Field = "token"
	return f
}
