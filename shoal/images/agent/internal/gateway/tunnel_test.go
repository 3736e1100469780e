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

func TestRequestsAreForwardedUnchangedWithForwardedHeaders(t *testing.T) {
	l := newTunnelHarness(t, nil)
	l.web(echoRequest)
	headers := withHeaders(l.tokenHeader(), "X-Forwarded-For", "1.2.3.4", "X-Forwarded-Prefix", "/lie", "Forwarded", "x",
		"X-Own", "kept", "TE", "trailers", "X-Request-Id", "mine", "Cookie", "a=1; shoal_tunnel=x; shoal_session_8000=s; __Host-shoal_session=s; b=2",
		"Authorization", "Basic own", "X_Forwarded_For", "1.2.3.4", "X-Forwarded_Host", "lie", "X-Real-IP", "1.2.3.4", "own_name", "kept")
	a := l.do("PUT", prefix+"/a%2Fb/c?q=1&q=%20x;y", headers, strings.NewReader("body"))
	got := a.echoed(t)
	expect(t, "request", []any{got.Method, got.Path, got.Body, got.Length},
		[]any{"PUT", "/a%2Fb/c?q=1&q=%20x;y", "body", 4})
	for name, wanted := range map[string]string{
		"Host": l.address, "X-Forwarded-Host": l.address, "X-Forwarded-Proto": "http",
		"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Prefix": prefix,
		"X-Own": "kept", "Cookie": "a=1; b=2", "Authorization": "Basic own",
		"Forwarded": "", "Te": "", "X-Shoal-Connect-Token": "", "X-Request-Id": "", "Accept-Encoding": "",
		"X_forwarded_for": "", "X-Forwarded_host": "", "X-Real-Ip": "", "Own_name": "kept",
	} {
		expect(t, name, got.Headers[name], wanted)
	}
	expect(t, "request id", a.Header["X-Request-Id"], []string{"mine"})
}

func TestPagesByPathAreConfined(t *testing.T) {
	l := newTunnelHarness(t, nil)
	l.web(func(w http.ResponseWriter, r *http.Request) {
		for _, name := range originWideHeaders {
			w.Header().Set(name, "x")
		}
		w.Header().Set("Www-Authenticate", "Basic")
		w.Header().Set("Content-Security-Policy", "sandbox allow-same-origin allow-scripts")
		w.WriteHeader(401)
	})
	a := l.get(prefix+"/", l.tokenHeader())
	policies := a.Header["Content-Security-Policy"]
	if len(policies) != 2 || !strings.HasPrefix(policies[1], "sandbox ") || strings.Contains(policies[1], "same-origin") {
		t.Error(policies)
	}
	for _, name := range originWideHeaders {
		expect(t, name, a.Header.Get(name), "")
	}
	expect(t, "a program may authenticate", a.Header.Get("Www-Authenticate"), "Basic")
	a = l.get(prefix+"/", withHeaders(l.tokenHeader(), "Sec-Fetch-Mode", "no-cors"))
	expect(t, "a browser asks for no password", a.Header.Get("Www-Authenticate"), "")

	trusting := newTunnelHarness(t, func(c *Config) { c.Confine = false })
	trusting.web(echoRequest)
	a = trusting.get(prefix+"/", withHeaders(trusting.tokenHeader(), navigation...))
	expect(t, "trusted", []any{a.StatusCode, a.Header.Get("Content-Security-Policy")}, []any{200, ""})
}

var navigation = []string{"Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"}

func TestABrowserHereLoadsAPageFromTheTunnelsOwnHost(t *testing.T) {
	l := newTunnelHarness(t, nil)
	l.web(echoRequest)
	token := l.connectToken(sandboxID, sandboxPort, time.Minute)
	own := fmt.Sprintf("http://%d-%s.localhost", sandboxPort, sandboxID)
	for host, port := range map[string]string{"localhost:8000": ":8000", "127.0.0.1:9": ":9", "[::1]": ""} {
		browser := withHeaders(map[string]string{"Host": host}, navigation...)
		a := l.get(prefix+"/a?b=c&shoal_token="+token, browser)
		expect(t, host, []any{a.StatusCode, a.Header.Get("Location"), a.Header["Set-Cookie"]},
			[]any{307, own + port + "/a?b=c&shoal_token=" + url.QueryEscape(token), []string(nil)})
		expect(t, "without a token", l.get(prefix+"/", browser).StatusCode, 401)
	}
	name := strings.TrimPrefix(own, "http://")
	a := l.get("/a?b=c&shoal_token="+token, withHeaders(map[string]string{"Host": name + ":8000"}, navigation...))
	expect(t, "at home", []any{a.StatusCode, a.Header.Get("Location")}, []any{303, "/a?b=c"})
	cookie, _, _ := strings.Cut(a.Header.Get("Set-Cookie"), ";")
	a = l.get("/a", withHeaders(map[string]string{"Host": name, "Cookie": cookie}, navigation...))
	expect(t, "with its cookie", []any{a.StatusCode, a.Header.Get("Content-Security-Policy")}, []any{200, ""})

	here := withHeaders(l.tokenHeader(), "Host", "localhost")
	for what, headers := range map[string]map[string]string{
		"a program":       here,
		"a script":        withHeaders(here, "Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty"),
		"a frame":         withHeaders(here, "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe"),
		"another machine": withHeaders(withHeaders(here, navigation...), "Host", "10.1.2.3:8000"),
		"another name":    withHeaders(withHeaders(here, navigation...), "Host", "shoal.example"),
	} {
		expect(t, what, l.get(prefix+"/", headers).StatusCode, 200)
	}
	l.locked(func() { l.open[sandboxPort] = true })
	eventually(t, "the tunnel opens", func() bool { return l.get(prefix+"/", nil).StatusCode == 200 })
	a = l.get(prefix, map[string]string{"Host": "localhost", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"})
	expect(t, "a frame with a public tunnel", []any{a.StatusCode, a.Header.Get("Location")}, []any{307, own + "/"})
}

func TestABrowserIsSentToTheDomainThatIsSet(t *testing.T) {
	l := newTunnelHarness(t, func(c *Config) {
		c.TunnelDomain, c.PublicURL = "tunnels.example", "https://shoal.example:8443"
	})
	l.web(echoRequest)
	a := l.get(prefix+"/x", withHeaders(map[string]string{"X-Shoal-Connect-Token": l.connectToken(sandboxID,
		sandboxPort, time.Minute)}, navigation...))
	location := fmt.Sprintf("https://%d-%s.tunnels.example:8443/x?shoal_token=", sandboxPort, sandboxID)
	if a.StatusCode != 307 || !strings.HasPrefix(a.Header.Get("Location"), location) {
		t.Error(a.StatusCode, a.Header.Get("Location"))
	}
	a = l.get("/", map[string]string{"Host": fmt.Sprintf("%d-%s.localhost", sandboxPort, sandboxID)})
	expect(t, "another domain", string(a.body), "the API")
}

func TestPathsAndHeadersStayBelowThePrefix(t *testing.T) {
	l := newTunnelHarness(t, func(c *Config) {
		c.TunnelDomain, c.PublicURL = "tunnels.localhost", "https://shoal.example"
	})
	removed := []string{"Service-Worker-Allowed", "Clear-Site-Data", "Strict-Transport-Security", "Alt-Svc", "X-Hop"}
	l.web(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Location", "/x")
		h.Add("Set-Cookie", "sid=1; Domain=127.0.0.1; Path=/app")
		h.Add("Set-Cookie", "shoal_tunnel=mine; Path=/")
		h.Add("Set-Cookie", "shoal_session_8000=mine; Path=/")
		for _, name := range removed {
			h.Set(name, "/")
		}
		h.Set("Connection", "X-Hop")
		w.WriteHeader(302)
	})
	a := l.get(prefix+"/go", l.tokenHeader())
	expect(t, "by path", []any{a.StatusCode, a.Header.Get("Location"), a.Header["Set-Cookie"]},
		[]any{302, prefix + "/x", []string{"sid=1; Path=" + prefix + "/app"}})
	for _, name := range removed {
		expect(t, name, a.Header.Get(name), "")
	}
	if policy := a.Header.Get("Content-Security-Policy"); !strings.HasPrefix(policy, "sandbox ") {
		t.Error(policy)
	}
	host := fmt.Sprintf("%d-%s.tunnels.localhost", sandboxPort, sandboxID)
	a = l.get("/v1/go", withHeaders(l.tokenHeader(), "Host", host))
	h := a.Header
	expect(t, "by host",
		[]any{h.Get("Location"), h["Set-Cookie"], h.Get("Clear-Site-Data"), h.Get("Content-Security-Policy")},
		[]any{"/x", []string{"sid=1; Path=/app"}, "/", ""})
	a = l.get("//evil.example/?shoal_token="+l.connectToken(sandboxID, sandboxPort, time.Minute),
		map[string]string{"Host": host})
	expect(t, "within", a.Header.Get("Location"), "/evil.example/")
	cookie := a.Header.Get("Set-Cookie")
	if !strings.Contains(cookie, "; Path=/; ") || !strings.HasSuffix(cookie, "; Secure") {
		t.Error(cookie)
	}
	expect(t, "no tunnel's host", string(l.get("/", map[string]string{"Host": "tunnels.localhost"}).body), "the API")
}

func TestEventsAreStreamedAndADisconnectReachesTheServer(t *testing.T) {
	l := newTunnelHarness(t, nil)
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
	request.Header.Set(connectHeader, l.tokenHeader()[connectHeader])
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
	case <-time.After(testTimeout):
		t.Fatal("the server is not told")
	}
}

var webSocketHeaders = map[string]string{
	"Connection": "Upgrade", "Upgrade": "websocket",
	"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}

func TestUpgradesForwardDataSentBeforeTheResponse(t *testing.T) {
	l := newTunnelHarness(t, nil)
	l.serveRaw(func(conn net.Conn, head string) {
		conn.Write([]byte("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: " +
			"websocket\r\nSet-Cookie: a=1; Path=/\r\n\r\nwelcome;" + strconv.FormatBool(strings.Contains(head,
			"shoal"+".")) + ";"))
		io.Copy(conn, conn)
		conn.Write([]byte("bye"))
	})
	offered := withHeaders(webSocketHeaders, "Sec-WebSocket-Protocol", "shoal.v1, shoal.bearer."+apiToken)
	conn, response, buffered, err := tryUpgrade(l.harness, prefix+"/", offered)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	expect(t, "answer", []any{response.StatusCode, response.Header.Get("Sec-WebSocket-Protocol"),
		response.Header.Get("Set-Cookie")}, []any{101, "shoal.v1", "a=1; Path=" + prefix + "/"})
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

func TestACookieFromAForeignPageOpensNoWebSocket(t *testing.T) {
	l := newTunnelHarness(t, nil)
	l.serveRaw(func(conn net.Conn, head string) {
		io.WriteString(conn, "HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	})
	cookie := "shoal_tunnel=" + l.connectToken(sandboxID, sandboxPort, time.Minute)
	for origin, status := range map[string]int{"http://" + l.address: 101, "https://" + l.address: 401,
		"http://evil.example": 401, "null": 401} {
		conn, response, _, err := tryUpgrade(l.harness, prefix+"/",
			withHeaders(webSocketHeaders, "Cookie", cookie, "Origin", origin))
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		expect(t, origin, response.StatusCode, status)
	}
}

func TestAServersRefusalOfAWebSocketIsForwarded(t *testing.T) {
	l := newTunnelHarness(t, nil)
	l.web(func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no sockets here", 418) })
	a := l.get(prefix+"/", withHeaders(l.tokenHeader(), "Connection", "Upgrade", "Upgrade", "websocket"))
	expect(t, "answer", []any{a.StatusCode, string(a.body)}, []any{418, "no sockets here\n"})
}

func TestRevokedAccessCutsConnections(t *testing.T) {
	guard := recheckInterval
	recheckInterval = 100 * time.Millisecond
	defer func() { recheckInterval = guard }()
	l := newTunnelHarness(t, nil)
	l.serveRaw(func(conn net.Conn, head string) {
		if strings.Contains(head, "pgrade") {
			io.WriteString(conn, "HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		} else {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\nbegun")
		}
		io.Copy(conn, conn)
	})
	standing := func(headers map[string]string) net.Conn {
		conn, _ := upgrade(t, l.harness, prefix+"/", withHeaders(webSocketHeaders, pairs(headers)...))
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	cut := func(conn net.Conn) bool {
		conn.SetReadDeadline(time.Now().Add(testTimeout))
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
	holder, user := standing(l.tokenHeader()), standing(map[string]string{"Authorization": "Bearer " + apiToken})
	l.locked(func() { l.open[sandboxPort] = true })
	time.Sleep(cacheTTL)
	anyone := standing(nil)
	l.locked(func() { l.open[sandboxPort] = false })
	if !cut(anyone) {
		t.Error("a client without a token stays connected after the tunnel became private")
	}
	alive(user)
	l.locked(func() { l.revoked = true })
	if !cut(user) {
		t.Error("the holder of a revoked token stays connected")
	}
	alive(holder)
	request, _ := http.NewRequest("GET", "http://"+l.address+prefix+"/", nil)
	request.Header.Set(connectHeader, l.tokenHeader()[connectHeader])
	response, err := l.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	l.locked(func() { delete(l.open, sandboxPort) })
	if !cut(holder) {
		t.Error("a WebSocket through a closed tunnel stays open")
	}
	if _, err := io.ReadAll(response.Body); err == nil {
		t.Error("a stream through a closed tunnel ended without an error")
	}
}

func pairs(headers map[string]string) (all []string) {
	for name, value := range headers {
		all = append(all, name, value)
	}
	return all
}

func TestInvalidHTTPFromAServerBecomesAProblem(t *testing.T) {
	l := newTunnelHarness(t, nil)
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
		l.serveRaw(func(conn net.Conn, head string) { io.WriteString(conn, said) })
		a := l.get(prefix+"/", l.tokenHeader())
		p := a.problem(t)
		expect(t, fmt.Sprintf("%.30q", said), []any{a.StatusCode, p["code"], p["retryable"]},
			[]any{503, "unavailable", false})
		if !strings.Contains(fmt.Sprint(p["detail"]), "port 8080") {
			t.Error(p["detail"])
		}
	}
}

func TestATruncatedResponseIsAnErrorForTheClient(t *testing.T) {
	l := newTunnelHarness(t, nil)
	for _, said := range []string{"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "Content-Length: 10\r\n\r\nhello"} {
		l.serveRaw(func(conn net.Conn, head string) { io.WriteString(conn, "HTTP/1.1 200 OK\r\n"+said) })
		if a, err := l.try("GET", prefix+"/", l.tokenHeader(), nil); err == nil {
			t.Errorf("%q", a.body)
		}
	}
	l.serveRaw(func(conn net.Conn, head string) {
		io.WriteString(conn, "HTTP/1.0 200 OK\r\nServer: old\r\n\r\n"+strings.Repeat("x", 100_000))
	})
	a := l.get(prefix+"/", l.tokenHeader())
	expect(t, "a plain old server", []any{a.Header.Get("Server"), len(a.body)}, []any{"old", 100_000})
}

func TestAServerThatRefusesExpectGetsNoBody(t *testing.T) {
	l := newTunnelHarness(t, nil)
	got := make(chan int64, 1)
	l.serveRaw(func(conn net.Conn, head string) {
		io.WriteString(conn, "HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		n, _ := io.Copy(io.Discard, conn)
		got <- n
	})
	l.client.Transport.(*http.Transport).ExpectContinueTimeout = testTimeout
	a := l.do("PUT", prefix+"/", withHeaders(l.tokenHeader(), "Expect", "100-continue"),
		strings.NewReader(strings.Repeat("x", 100_000)))
	expect(t, "refused", []any{a.StatusCode, <-got}, []any{413, 0})
	l.web(echoRequest)
	a = l.do("PUT", prefix+"/", withHeaders(l.tokenHeader(), "Expect", "100-continue"), strings.NewReader("xyz"))
	expect(t, "taken", a.echoed(t).Body, "xyz")
}

func TestAStoppedSandboxIsStartedOnceByThoseWhoMayUseItsTunnel(t *testing.T) {
	l := newTunnelHarness(t, nil)
	l.web(echoRequest)
	l.locked(func() { l.asleep = true })
	expect(t, "without a token", l.get(prefix+"/", nil).StatusCode, 401)
	expect(t, "a redirect", l.get(prefix, l.tokenHeader()).StatusCode, 308)
	l.locked(func() { expect(t, "woken", l.woken, 0) })
	answers := make(chan int)
	for range 20 {
		go func() { answers <- l.get(prefix+"/", l.tokenHeader()).StatusCode }()
	}
	for range 20 {
		expect(t, "status", <-answers, 200)
	}
	l.locked(func() { expect(t, "woken", l.woken, 1) })
	l.locked(func() { l.asleep = true })
	time.Sleep(cacheTTL)
	expect(t, "again", l.get(prefix+"/", l.tokenHeader()).StatusCode, 200)
	l.locked(func() { expect(t, "woken", l.woken, 2) })
}

func TestARequestThatStartsASandboxWaitsForItsServer(t *testing.T) {
	l := newTunnelHarness(t, nil)
	l.locked(func() { l.asleep = true })
	time.AfterFunc(time.Second, func() { l.web(echoRequest) })
	expect(t, "status", l.get(prefix+"/", l.tokenHeader()).StatusCode, 200)
}
