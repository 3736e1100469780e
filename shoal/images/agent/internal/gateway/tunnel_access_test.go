package gateway

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestWithoutCredentialsAllTunnelsLookTheSame(t *testing.T) {
	l := newTunnelHarness(t, nil)
	l.web(echoRequest)
	told := func(path string) map[string]any {
		a := l.get(path, nil)
		expect(t, path, []any{a.StatusCode, a.Header.Get("WWW-Authenticate") != ""}, []any{401, true})
		p := a.problem(t)
		delete(p, "request_id")
		return p
	}
	private := told(prefix + "/")
	expect(t, "code", private["code"], "unauthenticated")
	expect(t, "another port", told("/t/"+sandboxID+"/9/"), private)
	expect(t, "no such sandbox", told("/t/sb-never/8080/"), private)
	l.locked(func() { l.ended = true })
	time.Sleep(negativeCacheTTL)
	expect(t, "one that ended", told(prefix+"/"), private)
}

func TestAConnectTokenOpensOnlyItsTunnelUntilItExpires(t *testing.T) {
	l := newTunnelHarness(t, nil)
	l.web(echoRequest)
	good := l.connectToken(sandboxID, sandboxPort, time.Minute)
	for _, wrong := range []string{
		l.connectToken(sandboxID, sandboxPort+1, time.Minute), l.connectToken("sb-2", sandboxPort, time.Minute),
		l.connectToken(sandboxID, sandboxPort, -time.Second), good[:len(good)-4] + "AAAA",
		strings.Repeat("x", 5000), "a.b.c", "ü.ü",
	} {
		a := l.get(prefix+"/?shoal_token="+url.QueryEscape(wrong), nil)
		expect(t, wrong, []any{a.StatusCode, a.problem(t)["code"]}, []any{401, "unauthenticated"})
	}
	expect(t, "a good one", l.get(prefix+"/", l.tokenHeader()).StatusCode, 200)
}

func TestATokenInTheURLBecomesACookieThatTheServerNeverSees(t *testing.T) {
	l := newTunnelHarness(t, nil)
	l.web(echoRequest)
	given := l.connectToken(sandboxID, sandboxPort, time.Minute)
	a := l.get(prefix+"/page?a=1&shoal_token="+given+"&b=2", nil)
	expect(t, "redirect", []any{a.StatusCode, a.Header.Get("Location")}, []any{303, prefix + "/page?a=1&b=2"})
	cookie := a.Header.Get("Set-Cookie")
	if !strings.HasPrefix(cookie, "shoal_tunnel="+given+"; Path="+prefix+"/; Max-Age=5") ||
		!strings.HasSuffix(cookie, "; HttpOnly; SameSite=Lax") {
		t.Error(cookie)
	}
	pair, _, _ := strings.Cut(cookie, ";")
	cookies := map[string]string{"Cookie": "mine=1; shoal_tunnel=wrong; " + pair + "; more=2"}
	expect(t, "cookies inside", l.get(prefix+"/page", cookies).echoed(t).Headers["Cookie"], "mine=1; more=2")
	// A page of another tunnel can make the browser send the cookie, but the cookie does not count then.
	status := func(method string, headers ...string) int {
		return l.do(method, prefix+"/", withHeaders(cookies, headers...), nil).StatusCode
	}
	expect(t, "another site", status("POST", "Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "no-cors"), 401)
	expect(t, "another origin", status("POST", "Origin", "http://evil.example"), 401)
	expect(t, "a navigation", status("GET", "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate"), 200)
	expect(t, "its own page", status("POST", "Origin", "http://"+l.address), 200)
	a = l.do("POST", prefix+"/page?shoal_token="+given, nil, strings.NewReader("x"))
	expect(t, "a POST with the token in the URL", a.echoed(t).Path, "/page")
	a = l.get(prefix+"?a=1", l.tokenHeader())
	expect(t, "slash", []any{a.StatusCode, a.Header.Get("Location")}, []any{308, prefix + "/?a=1"})
}

func TestAnAPITokenOpensTunnelsAndIsNotForwarded(t *testing.T) {
	l := newTunnelHarness(t, nil)
	l.web(echoRequest)
	headers := map[string]string{"Authorization": "Bearer " + apiToken}
	a := l.get(prefix+"/", headers)
	expect(t, "status", a.StatusCode, 200)
	if _, found := a.echoed(t).Headers["Authorization"]; found {
		t.Error("the token went inside")
	}
	for _, several := range [][]string{
		{"Basic own", "Bearer " + apiToken}, {"Basic own, Bearer " + apiToken}, {"Bearer " + apiToken, "Basic own"},
	} {
		h := http.Header{"Authorization": several}
		extractCredentials(h)
		if left := strings.Join(h["Authorization"], ""); strings.Contains(left, apiToken) {
			t.Errorf("%q went inside", left)
		}
	}
	wrong := map[string]string{"Authorization": "Bearer " + strings.Replace(apiToken, "f_0", "e_0", 1)}
	expect(t, "a wrong one", l.get(prefix+"/", wrong).problem(t)["code"], "unauthenticated")
	expect(t, "no tunnel", l.get("/t/"+sandboxID+"/9/", headers).problem(t)["code"], "tunnel_not_found")
}

func TestWithATokenTheErrorSaysWhatIsWrong(t *testing.T) {
	l := newTunnelHarness(t, nil)
	other := map[string]string{connectHeader: l.connectToken(sandboxID, 9, time.Minute)}
	a := l.get("/t/"+sandboxID+"/9/", other)
	expect(t, "no tunnel", []any{a.StatusCode, a.problem(t)["code"]}, []any{404, "tunnel_not_found"})
	l.locked(func() { l.open[9] = false })
	a = l.get("/t/"+sandboxID+"/9/", other)
	p := a.problem(t)
	expect(t, "opened, but nothing listens", []any{a.StatusCode, p["code"], p["retryable"], p["port"]},
		[]any{503, "unavailable", true, 9})
	a = l.get(prefix+"/<script>", withHeaders(l.tokenHeader(), "Accept", "text/html,*/*"))
	if page := string(a.body); !strings.Contains(page, "start your server there, on 127.0.0.1:8080") {
		t.Error(page)
	}
	expect(t, "a page", a.Header.Get("Content-Type"), "text/html; charset=utf-8")
	l.locked(func() { l.ended = true })
	time.Sleep(cacheTTL)
	a = l.get(prefix+"/", l.tokenHeader())
	expect(t, "ended", []any{a.StatusCode, a.problem(t)["code"]}, []any{410, "sandbox_ended"})
}

func TestAPublicTunnelNeedsNoTokenAndClosesSoon(t *testing.T) {
	l := newTunnelHarness(t, nil)
	l.web(echoRequest)
	expect(t, "private", l.get(prefix+"/", nil).StatusCode, 401)
	l.locked(func() { l.open[sandboxPort] = true })
	time.Sleep(negativeCacheTTL)
	expect(t, "public", l.get(prefix+"/", nil).StatusCode, 200)
	before := l.lookups
	done := make(chan int)
	for range 50 {
		go func() { done <- l.get(prefix+"/", nil).StatusCode }()
	}
	for range 50 {
		expect(t, "status", <-done, 200)
	}
	if asked := l.lookups - before; asked > 2 {
		t.Errorf("%d questions", asked)
	}
	token := l.connectToken(sandboxID, sandboxPort, time.Minute)
	expect(t, "a token in the URL", l.get(prefix+"/?shoal_token="+token, nil).StatusCode, 303)
	expect(t, "an invalid token in the URL", l.get(prefix+"/?shoal_token=wrong", nil).StatusCode, 200)
	l.locked(func() { delete(l.open, sandboxPort) })
	eventually(t, "the tunnel closes", func() bool { return l.get(prefix+"/", nil).StatusCode == 401 })
}

func TestWithoutAuthenticationOnlyThisMachineIsAllowed(t *testing.T) {
	l := newTunnelHarness(t, func(c *Config) { c.Auth, c.TunnelDomain = false, "localhost" })
	l.web(echoRequest)
	expect(t, "this machine", l.get(prefix+"/", l.tokenHeader()).StatusCode, 200)
	expect(t, "a rebound name", l.get(prefix+"/", withHeaders(l.tokenHeader(), "Host", "evil.example")).StatusCode, 403)
	expect(t, "a foreign page", l.get(prefix+"/", withHeaders(l.tokenHeader(), "Origin",
		"http://evil.example")).StatusCode, 403)
	own := fmt.Sprintf("%d-%s.localhost", sandboxPort, sandboxID)
	expect(t, "a tunnel's host", l.get("/", withHeaders(l.tokenHeader(), "Host", own, "Origin",
		"http://"+own)).StatusCode, 200)
}
