package gateway

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestARequestArrivesAsItWasSentAndSaysWhichWayItCame(t *testing.T) {
	l := newTunnelLab(t, nil)
	l.web(tellRequest)
	a := l.do("PUT", prefix+"/a%2Fb/c?q=1&q=%20x;y", with(l.key(), "X-Forwarded-For", "1.2.3.4", "X-Forwarded-Prefix", "/lie", "Forwarded", "x",
		"X-Own", "kept", "TE", "trailers", "X-Request-Id", "mine", "Cookie", "a=1; shoal_tunnel=x; b=2", "Authorization", "Basic own"), strings.NewReader("body"))
	got := a.seen(t)
	expect(t, "request", []any{got.Method, got.Path, got.Body, got.Length}, []any{"PUT", "/a%2Fb/c?q=1&q=%20x;y", "body", 4})
	for name, wanted := range map[string]string{
		"Host": l.address, "X-Forwarded-Host": l.address, "X-Forwarded-Proto": "http", "X-Forwarded-For": "127.0.0.1", "X-Forwarded-Prefix": prefix,
		"X-Own": "kept", "Cookie": "a=1; b=2", "Authorization": "Basic own",
		"Forwarded": "", "Te": "", "X-Shoal-Connect-Token": "", "X-Request-Id": "", "Accept-Encoding": "",
	} {
		expect(t, name, got.Headers[name], wanted)
	}
	expect(t, "request id", a.Header["X-Request-Id"], []string{"mine"})
}

func TestWhoHoldsNothingLearnsNothing(t *testing.T) {
	l := newTunnelLab(t, nil)
	l.web(tellRequest)
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
	l.set(func() { l.ended = true })
	time.Sleep(negativeCacheTTL)
	expect(t, "one that ended", told(prefix+"/"), private)
}

func TestATokenOpensItsOwnTunnelUntilItExpires(t *testing.T) {
	l := newTunnelLab(t, nil)
	l.web(tellRequest)
	good := l.connectToken(sandboxID, portInside, time.Minute)
	for _, wrong := range []string{
		l.connectToken(sandboxID, portInside+1, time.Minute), l.connectToken("sb-2", portInside, time.Minute),
		l.connectToken(sandboxID, portInside, -time.Second), good[:len(good)-4] + "AAAA", strings.Repeat("x", 5000), "a.b.c", "ü.ü",
	} {
		a := l.get(prefix+"/?shoal_token="+url.QueryEscape(wrong), nil)
		expect(t, wrong, []any{a.StatusCode, a.problem(t)["code"]}, []any{401, "unauthenticated"})
	}
	expect(t, "a good one", l.get(prefix+"/", l.key()).StatusCode, 200)
}

func TestALinkBecomesACookieThatTheServerNeverSees(t *testing.T) {
	l := newTunnelLab(t, nil)
	l.web(tellRequest)
	given := l.connectToken(sandboxID, portInside, time.Minute)
	a := l.get(prefix+"/page?a=1&shoal_token="+given+"&b=2", nil)
	expect(t, "redirect", []any{a.StatusCode, a.Header.Get("Location")}, []any{303, prefix + "/page?a=1&b=2"})
	cookie := a.Header.Get("Set-Cookie")
	if !strings.HasPrefix(cookie, "shoal_tunnel="+given+"; Path="+prefix+"/; Max-Age=5") || !strings.HasSuffix(cookie, "; HttpOnly; SameSite=Lax") {
		t.Error(cookie)
	}
	pair, _, _ := strings.Cut(cookie, ";")
	cookies := map[string]string{"Cookie": "mine=1; shoal_tunnel=wrong; " + pair + "; more=2"}
	expect(t, "cookies inside", l.get(prefix+"/page", cookies).seen(t).Headers["Cookie"], "mine=1; more=2")
	// A page of another tunnel may make the browser send the cookie along, but is not let in by it.
	expect(t, "another site", l.do("POST", prefix+"/", with(cookies, "Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "no-cors"), nil).StatusCode, 401)
	expect(t, "another origin", l.do("POST", prefix+"/", with(cookies, "Origin", "http://evil.example"), nil).StatusCode, 401)
	expect(t, "a visit", l.get(prefix+"/", with(cookies, "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate")).StatusCode, 200)
	expect(t, "its own page", l.do("POST", prefix+"/", with(cookies, "Origin", "http://"+l.address), nil).StatusCode, 200)
	expect(t, "a post by link", l.do("POST", prefix+"/page?shoal_token="+given, nil, strings.NewReader("x")).seen(t).Path, "/page")
	a = l.get(prefix+"?a=1", l.key())
	expect(t, "slash", []any{a.StatusCode, a.Header.Get("Location")}, []any{308, prefix + "/?a=1"})
}

func TestAnAPITokenOpensTunnelsAndGoesNoFurther(t *testing.T) {
	l := newTunnelLab(t, nil)
	l.web(tellRequest)
	headers := map[string]string{"Authorization": "Bearer " + apiToken}
	a := l.get(prefix+"/", headers)
	expect(t, "status", a.StatusCode, 200)
	if _, found := a.seen(t).Headers["Authorization"]; found {
		t.Error("the token went inside")
	}
	wrong := map[string]string{"Authorization": "Bearer " + strings.Replace(apiToken, "f_0", "e_0", 1)}
	expect(t, "a wrong one", l.get(prefix+"/", wrong).problem(t)["code"], "unauthenticated")
	expect(t, "no tunnel", l.get("/t/"+sandboxID+"/9/", headers).problem(t)["code"], "tunnel_not_found")
}

func TestWhoMayKnowIsToldWhatIsWrong(t *testing.T) {
	l := newTunnelLab(t, nil)
	other := map[string]string{connectHeader: l.connectToken(sandboxID, 9, time.Minute)}
	a := l.get("/t/"+sandboxID+"/9/", other)
	expect(t, "no tunnel", []any{a.StatusCode, a.problem(t)["code"]}, []any{404, "tunnel_not_found"})
	l.set(func() { l.open[9] = false })
	a = l.get("/t/"+sandboxID+"/9/", other)
	p := a.problem(t)
	expect(t, "opened, but nothing listens", []any{a.StatusCode, p["code"], p["retryable"], p["port"]}, []any{503, "unavailable", true, 9})
	a = l.get(prefix+"/<script>", with(l.key(), "Accept", "text/html,*/*"))
	if page := string(a.body); !strings.Contains(page, "start your server there, on 127.0.0.1:8080") || a.Header.Get("Content-Type") != "text/html; charset=utf-8" {
		t.Error(page)
	}
	l.set(func() { l.ended = true })
	time.Sleep(cacheTTL)
	a = l.get(prefix+"/", l.key())
	expect(t, "ended", []any{a.StatusCode, a.problem(t)["code"]}, []any{410, "sandbox_ended"})
}

func TestAPublicTunnelNeedsNothingAndClosesSoon(t *testing.T) {
	l := newTunnelLab(t, nil)
	l.web(tellRequest)
	expect(t, "private", l.get(prefix+"/", nil).StatusCode, 401)
	l.set(func() { l.open[portInside] = true })
	time.Sleep(negativeCacheTTL)
	expect(t, "public", l.get(prefix+"/", nil).StatusCode, 200)
	before := l.questions
	done := make(chan int)
	for range 50 {
		go func() { done <- l.get(prefix+"/", nil).StatusCode }()
	}
	for range 50 {
		expect(t, "status", <-done, 200)
	}
	if asked := l.questions - before; asked > 2 {
		t.Errorf("%d questions", asked)
	}
	expect(t, "a link", l.get(prefix+"/?shoal_token="+l.connectToken(sandboxID, portInside, time.Minute), nil).StatusCode, 303)
	expect(t, "a bad link", l.get(prefix+"/?shoal_token=wrong", nil).StatusCode, 200)
	l.set(func() { delete(l.open, portInside) })
	eventually(t, "the tunnel closes", func() bool { return l.get(prefix+"/", nil).StatusCode == 401 })
}

func TestPathsAndHeadersStayBelowThePrefix(t *testing.T) {
	l := newTunnelLab(t, func(c *Config) { c.TunnelDomain, c.PublicURL = "tunnels.localhost", "https://shoal.example" })
	l.web(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Location", "/x")
		h.Add("Set-Cookie", "sid=1; Domain=127.0.0.1; Path=/app")
		h.Add("Set-Cookie", "shoal_tunnel=mine; Path=/")
		for _, name := range []string{"Service-Worker-Allowed", "Clear-Site-Data", "Strict-Transport-Security", "Alt-Svc", "X-Hop"} {
			h.Set(name, "/")
		}
		h.Set("Connection", "X-Hop")
		w.WriteHeader(302)
	})
	a := l.get(prefix+"/go", l.key())
	expect(t, "by path", []any{a.StatusCode, a.Header.Get("Location"), a.Header["Set-Cookie"]}, []any{302, prefix + "/x", []string{"sid=1; Path=" + prefix + "/app"}})
	for _, name := range []string{"Service-Worker-Allowed", "Clear-Site-Data", "Strict-Transport-Security", "Alt-Svc", "X-Hop"} {
		expect(t, name, a.Header.Get(name), "")
	}
	if policy := a.Header.Get("Content-Security-Policy"); !strings.HasPrefix(policy, "sandbox ") {
		t.Error(policy)
	}
	host := fmt.Sprintf("%d-%s.tunnels.localhost", portInside, sandboxID)
	a = l.get("/v1/go", with(l.key(), "Host", host))
	expect(t, "by host", []any{a.Header.Get("Location"), a.Header["Set-Cookie"], a.Header.Get("Clear-Site-Data"), a.Header.Get("Content-Security-Policy")},
		[]any{"/x", []string{"sid=1; Path=/app"}, "/", ""})
	a = l.get("//evil.example/?shoal_token="+l.connectToken(sandboxID, portInside, time.Minute), map[string]string{"Host": host})
	expect(t, "within", a.Header.Get("Location"), "/evil.example/")
	if cookie := a.Header.Get("Set-Cookie"); !strings.Contains(cookie, "; Path=/; ") || !strings.HasSuffix(cookie, "; Secure") {
		t.Error(cookie)
	}
	expect(t, "no tunnel's host", string(l.get("/", map[string]string{"Host": "tunnels.localhost"}).body), "the API")
}

func TestEventsFlowAndAClientThatLeavesEndsTheConnectionInside(t *testing.T) {
	l := newTunnelLab(t, nil)
	gone := make(chan struct{})
	l.web(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := 1; i <= 2; i++ {
			fmt.Fprintf(w, "data: %d\n\n", i)
			http.NewResponseController(w).Flush()
			time.Sleep(50 * time.Millisecond)
		}
		<-r.Context().Done()
		close(gone)
	})
	request, _ := http.NewRequest("GET", "http://"+l.address+prefix+"/", nil)
	request.Header.Set(connectHeader, l.key()[connectHeader])
	response, err := l.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len("data: 1\n\ndata: 2\n\n"))
	if _, err := io.ReadFull(response.Body, got); err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	select {
	case <-gone:
	case <-time.After(patient):
		t.Fatal("the server is not told")
	}
}

var socket = map[string]string{
	"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}

func TestUpgradesArePassedOnWithWhatWasSaidInAdvance(t *testing.T) {
	l := newTunnelLab(t, nil)
	l.says(func(conn net.Conn, head string) {
		conn.Write([]byte("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: " +
			"websocket\r\nSet-Cookie: a=1; Path=/\r\n\r\nwelcome;" + strconv.FormatBool(strings.Contains(head, "shoal"+".")) + ";"))
		io.Copy(conn, conn)
		conn.Write([]byte("bye"))
	})
	offered := with(socket, "Sec-WebSocket-Protocol", "shoal.v1, shoal.bearer."+apiToken)
	conn, response, buffered, err := tryUpgrade(l.lab, prefix+"/", offered)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	expect(t, "answer", []any{response.StatusCode, response.Header.Get("Sec-WebSocket-Protocol"), response.Header.Get("Set-Cookie")}, []any{101, "shoal.v1", "a=1; Path=" + prefix + "/"})
	said := strings.Repeat("hello", 100_000)
	go func() {
		io.WriteString(conn, said)
		conn.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(buffered)
	if err != nil || string(got) != "welcome;false;"+said+"bye" {
		t.Fatalf("%.40q %d %v", got, len(got), err)
	}
}

func TestACookieOfAForeignPageOpensNoWebSocket(t *testing.T) {
	l := newTunnelLab(t, nil)
	l.says(func(conn net.Conn, head string) {
		io.WriteString(conn, "HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	})
	cookie := "shoal_tunnel=" + l.connectToken(sandboxID, portInside, time.Minute)
	for origin, status := range map[string]int{"http://" + l.address: 101, "https://" + l.address: 401, "http://evil.example": 401, "null": 401} {
		conn, response, _, err := tryUpgrade(l.lab, prefix+"/", with(socket, "Cookie", cookie, "Origin", origin))
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		expect(t, origin, response.StatusCode, status)
	}
}

func TestAServerThatWantsNoWebSocketSaysSoItself(t *testing.T) {
	l := newTunnelLab(t, nil)
	l.web(func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no sockets here", 418) })
	a := l.get(prefix+"/", with(l.key(), "Connection", "Upgrade", "Upgrade", "websocket"))
	expect(t, "answer", []any{a.StatusCode, string(a.body)}, []any{418, "no sockets here\n"})
}

func TestWhatIsTakenBackIsCut(t *testing.T) {
	guard := recheckInterval
	recheckInterval = 100 * time.Millisecond
	defer func() { recheckInterval = guard }()
	l := newTunnelLab(t, nil)
	l.says(func(conn net.Conn, head string) {
		if strings.Contains(head, "pgrade") {
			io.WriteString(conn, "HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		} else {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\nbegun")
		}
		io.Copy(conn, conn)
	})
	standing := func(headers map[string]string) net.Conn {
		conn, _ := upgrade(t, l.lab, prefix+"/", with(socket, flat(headers)...))
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	cut := func(conn net.Conn) bool {
		conn.SetReadDeadline(time.Now().Add(patient))
		_, err := io.Copy(io.Discard, conn)
		timeout, ok := err.(net.Error)
		return !ok || !timeout.Timeout()
	}
	alive := func(conn net.Conn) {
		io.WriteString(conn, "x")
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	holder, user := standing(l.key()), standing(map[string]string{"Authorization": "Bearer " + apiToken})
	l.set(func() { l.open[portInside] = true })
	time.Sleep(cacheTTL)
	anyone := standing(nil)
	l.set(func() { l.open[portInside] = false })
	if !cut(anyone) {
		t.Error("it became private, and who needed no token stays in")
	}
	alive(user)
	l.set(func() { l.revoked = true })
	if !cut(user) {
		t.Error("a revoked token's holder stays in")
	}
	alive(holder)
	request, _ := http.NewRequest("GET", "http://"+l.address+prefix+"/", nil)
	request.Header.Set(connectHeader, l.key()[connectHeader])
	response, err := l.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	l.set(func() { delete(l.open, portInside) })
	if !cut(holder) {
		t.Error("a closed tunnel's WebSocket stands")
	}
	if _, err := io.ReadAll(response.Body); err == nil {
		t.Error("a closed tunnel's stream looks as if it had ended")
	}
}

func flat(headers map[string]string) (all []string) {
	for name, value := range headers {
		all = append(all, name, value)
	}
	return all
}

func TestWhatIsNoHTTPIsToldSo(t *testing.T) {
	l := newTunnelLab(t, nil)
	for _, said := range []string{
		"", "SSH-2.0-OpenSSH_9.2\r\n", "\x00\x01\x02\xff\r\n\r\n",
		"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20),
		"HTTP/1.1 200 OK\r\n" + strings.Repeat("X: y\r\n", 300) + "\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
		strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 1000),
		"HTTP/1.1 999 Never\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nBad\x00Name: 1\r\n\r\n",
	} {
		l.says(func(conn net.Conn, head string) { io.WriteString(conn, said) })
		a := l.get(prefix+"/", l.key())
		p := a.problem(t)
		expect(t, fmt.Sprintf("%.30q", said), []any{a.StatusCode, p["code"], p["retryable"]}, []any{503, "unavailable", false})
		if !strings.Contains(fmt.Sprint(p["detail"]), "port 8080") {
			t.Error(p["detail"])
		}
	}
}

func TestAnAnswerCutShortIsSeenToBe(t *testing.T) {
	l := newTunnelLab(t, nil)
	for _, said := range []string{"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "Content-Length: 10\r\n\r\nhello"} {
		l.says(func(conn net.Conn, head string) { io.WriteString(conn, "HTTP/1.1 200 OK\r\n"+said) })
		if a, err := l.try("GET", prefix+"/", l.key(), nil); err == nil {
			t.Errorf("%q", a.body)
		}
	}
	l.says(func(conn net.Conn, head string) {
		io.WriteString(conn, "HTTP/1.0 200 OK\r\nServer: old\r\n\r\n"+strings.Repeat("x", 100_000))
	})
	a := l.get(prefix+"/", l.key())
	expect(t, "a plain old server", []any{a.Header.Get("Server"), len(a.body)}, []any{"old", 100_000})
}

func TestAServerThatRefusesABodyGetsNoneOfIt(t *testing.T) {
	l := newTunnelLab(t, nil)
	got := make(chan int64, 1)
	l.says(func(conn net.Conn, head string) {
		io.WriteString(conn, "HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		n, _ := io.Copy(io.Discard, conn)
		got <- n
	})
	l.client.Transport.(*http.Transport).ExpectContinueTimeout = patient
	a := l.do("PUT", prefix+"/", with(l.key(), "Expect", "100-continue"), strings.NewReader(strings.Repeat("x", 100_000)))
	expect(t, "refused", []any{a.StatusCode, <-got}, []any{413, 0})
	l.web(tellRequest)
	a = l.do("PUT", prefix+"/", with(l.key(), "Expect", "100-continue"), strings.NewReader("xyz"))
	expect(t, "taken", a.seen(t).Body, "xyz")
}

func TestWithoutAuthenticationOnlyThisMachineIsLetIn(t *testing.T) {
	l := newTunnelLab(t, func(c *Config) { c.Auth, c.TunnelDomain = false, "localhost" })
	l.web(tellRequest)
	expect(t, "this machine", l.get(prefix+"/", l.key()).StatusCode, 200)
	expect(t, "a rebound name", l.get(prefix+"/", with(l.key(), "Host", "evil.example")).StatusCode, 403)
	expect(t, "a foreign page", l.get(prefix+"/", with(l.key(), "Origin", "http://evil.example")).StatusCode, 403)
	own := fmt.Sprintf("%d-%s.localhost", portInside, sandboxID)
	expect(t, "a tunnel's host", l.get("/", with(l.key(), "Host", own, "Origin", "http://"+own)).StatusCode, 200)
}
