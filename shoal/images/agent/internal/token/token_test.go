package token

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"shoal/agent/internal/fault"
)

var (
	secret = []byte("0123456789abcdef0123456789abcdef")
	now    = time.Unix(1_000_000, 0)
)

func sign(payload string) string {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(payload))
	return base64.RawURLEncoding.EncodeToString([]byte(payload)) + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

const good = `{"sandbox":"sb-1","key":"c-abc","scopes":["exec"],"exp":1000001}`

func TestAValidTokenReturnsItsClaims(t *testing.T) {
	c, err := Check(secret, sign(good), now)
	if err != nil || c.Sandbox != "sb-1" || c.Key != "c-abc" || len(c.Scopes) != 1 {
		t.Fatalf("got %+v, %v", c, err)
	}
}

func TestInvalidTokensAreRefused(t *testing.T) {
	flipped := []byte(sign(good))
	flipped[len(flipped)-2] ^= 1
	for name, text := range map[string]string{
		"empty":            "",
		"no signature":     strings.Split(sign(good), ".")[0],
		"flipped":          string(flipped),
		"other payload":    strings.Replace(sign(good), "eyJ", "eyK", 1),
		"expired":          sign(strings.Replace(good, "1000001", "1000000", 1)),
		"no port":          sign(strings.Replace(good, `"exp"`, `"port":65536,"exp"`, 1)),
		"negative port":    sign(strings.Replace(good, `"exp"`, `"port":-1,"exp"`, 1)),
		"path for a key":   sign(strings.Replace(good, "c-abc", "c-../x", 1)),
		"signed no JSON":   sign("hello"),
		"too long":         sign(`{"sandbox":"` + strings.Repeat("x", MaxSize) + `"}`),
		"another's secret": func() string { s := sign(good); return s[:len(s)-43] + strings.Repeat("A", 43) }(),
	} {
		_, err := Check(secret, text, now)
		var f *fault.Fault
		if !errors.As(err, &f) || f.Code != fault.Unauthenticated {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestPortsAndScopes(t *testing.T) {
	all := Claims{Scopes: []string{"tunnel"}}
	one := Claims{Scopes: []string{"tunnel", "exec"}, Port: 80}
	none := Claims{Scopes: []string{"exec"}, Port: 80}
	if all.CheckDial(80) != nil || all.CheckRequests() != nil || one.CheckDial(80) != nil {
		t.Error("refused what the claims allow")
	}
	if one.CheckDial(81) == nil || one.CheckRequests() == nil || none.CheckDial(80) == nil || none.CheckRequests() == nil {
		t.Error("allowed what the claims refuse")
	}
	pass, anywhere := Claims{Scopes: []string{"pass"}, Port: 80}, Claims{Scopes: []string{"pass"}}
	if pass.CheckPass(80) != nil || all.CheckPass(80) != nil || one.CheckPass(80) != nil {
		t.Error("refused a pass")
	}
	if pass.CheckPass(81) == nil || pass.CheckDial(80) == nil || pass.CheckRequests() == nil ||
		anywhere.CheckPass(80) == nil || none.CheckPass(80) == nil {
		t.Error("a pass opened something else than its port")
	}
}

func FuzzCheck(f *testing.F) {
	f.Add(sign(good))
	f.Add("a.b")
	f.Add(".")
	f.Fuzz(func(t *testing.T, text string) {
		if c, err := Check(secret, text, now); err == nil && !ValidKey(c.Key) {
			t.Fatalf("admitted %q for the key %q", text, c.Key)
		}
	})
}
