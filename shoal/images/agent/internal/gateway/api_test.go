package gateway

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestForwardedHeadersOfClientsAreIgnored(t *testing.T) {
	l := startHarness(t, nil)
	l.replica("r1", echoRequest, nil)
	got := l.get("/a%2Fb?q=%20;x", map[string]string{
		"X-Forwarded-For": "9.9.9.9", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example",
		"X-Forwarded-Prefix": "/x",
		"Forwarded":          "for=9.9.9.9", "X-Session-Id": "1", "serve_multiplexed_model_id": "x",
		"X-Shoal-Gateway-Peer": "1", "X-Own": "kept",
		"Upgrade": "h2c", "Connection": "Upgrade", "Te": "trailers",
	}).echoed(t)
	expect(t, "path", got.Path, "/a%2Fb?q=%20;x")
	expect(t, "for", got.Headers["X-Forwarded-For"], "127.0.0.1")
	expect(t, "proto", got.Headers["X-Forwarded-Proto"], "http")
	expect(t, "host", got.Headers["X-Forwarded-Host"], l.address)
	expect(t, "own", got.Headers["X-Own"], "kept")
	for _, name := range []string{
		"X-Forwarded-Prefix", "Forwarded", "X-Session-Id", "Serve_multiplexed_model_id", "X-Shoal-Gateway-Peer",
		"Upgrade", "Te", "User-Agent2",
	} {
		if value, found := got.Headers[name]; found {
			t.Errorf("%s: %q", name, value)
		}
	}
}

func TestForwardedHeadersOfATrustedProxyAreUsed(t *testing.T) {
	l := startHarness(t, func(c *Config) { c.TrustedProxies = []string{"127.0.0.1", "10.0.0.0/8"} })
	l.replica("r1", echoRequest, nil)
	for given, wanted := range map[string]string{
		"9.9.9.9":            "9.9.9.9",
		"6.6.6.6, 9.9.9.9":   "9.9.9.9", // the client made the first one up
		"9.9.9.9, 10.1.2.3":  "9.9.9.9",
		"nonsense":           "127.0.0.1",
		"9.9.9.9, nonsense":  "127.0.0.1",
		"10.1.1.1, 10.1.1.2": "10.1.1.1",
		"::ffff:9.9.9.9":     "9.9.9.9",
	} {
		got := l.get("/", map[string]string{
			"X-Forwarded-For": given, "X-Forwarded-Proto": "https", "X-Forwarded-Host": "a.example",
		}).echoed(t)
		expect(t, given, got.Headers["X-Forwarded-For"], wanted)
		expect(t, "proto", got.Headers["X-Forwarded-Proto"], "https")
		expect(t, "host", got.Headers["X-Forwarded-Host"], "a.example")
	}
}

func TestRequestIds(t *testing.T) {
	l := startHarness(t, nil)
	l.replica("r1", echoRequest, nil)
	a := l.get("/", map[string]string{"X-Request-Id": "run-7.a_B"})
	expect(t, "kept", a.echoed(t).Headers["X-Request-Id"], "run-7.a_B")
	expect(t, "told", a.Header["X-Request-Id"], []string{"run-7.a_B"})
	for _, wrong := range []string{"a b", strings.Repeat("x", 65), "ü", "", `ok, a"b\`, "one,two"} {
		a := l.get("/", map[string]string{"X-Request-Id": wrong})
		made := a.echoed(t).Headers["X-Request-Id"]
		if made == wrong || len(made) != 32 || a.Header.Get("X-Request-Id") != made {
			t.Errorf("%q: %q", wrong, made)
		}
	}
	answer := l.raw("GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: one\r\nX-Request-Id: two\r\nConnection: close\r\n\r\n")
	if strings.Contains(answer, "one") || strings.Contains(answer, "two") {
		t.Error(answer)
	}
}

func TestTooLongRequestsAreRefused(t *testing.T) {
	l := startHarness(t, nil)
	l.replica("r1", echoRequest, nil)
	many := func(n int) map[string]string {
		headers := map[string]string{}
		for i := range n {
			headers[fmt.Sprintf("A-%d", i)] = "b"
		}
		return headers
	}
	for _, c := range []struct {
		path    string
		headers map[string]string
		status  int
	}{
		{"/" + strings.Repeat("u", 8192), nil, 414},
		{"/" + strings.Repeat("u", 8191), nil, 200},
		{"/", map[string]string{"X-A": strings.Repeat("a", 16_400)}, 431},
		{"/", map[string]string{"X-A": strings.Repeat("a", 16_000)}, 200},
		{"/", many(101), 431},
		{"/", many(97), 200},
	} {
		a := l.get(c.path, c.headers)
		expect(t, "status", a.StatusCode, c.status)
		if c.status != 200 {
			expect(t, "code", a.problem(t)["code"], "invalid_request")
		}
	}
}

func TestInvalidRequestsDoNotReachAReplica(t *testing.T) {
	l := startHarness(t, func(c *Config) { c.HeaderTimeoutS = 1 })
	var asked atomic.Int64
	l.replica("r1", func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err == nil {
			asked.Add(1)
		}
	}, nil)
	for _, sent := range []string{
		"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nX-A\xff: b\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + strings.Repeat("a", 80_000) + "\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
		"GET / HTTP/1.1\r\n\r\n",
		"CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\nConnection: close\r\n\r\n",
	} {
		if got := l.raw(sent); !strings.HasPrefix(got, "HTTP/1.1 4") {
			t.Errorf("%.30q: %.80q", sent, got)
		}
	}
	began := time.Now()
	l.raw("GET / HTTP/1.1\r\nHost: x\r\nX-Sl")
	if took := time.Since(began); took < 900*time.Millisecond || took > 10*time.Second {
		t.Errorf("headers that do not end are waited for %s", took)
	}
	expect(t, "requests", asked.Load(), 0)
}

func TestWithoutAReplicaTheAnswerIsRetryable(t *testing.T) {
	l := startHarness(t, nil)
	a := l.get("/", map[string]string{"X-Request-Id": "one"})
	p := a.problem(t)
	expect(t, "problem", []any{a.StatusCode, p["code"], p["retryable"], p["request_id"], a.Header.Get("Retry-After")},
		[]any{503, "unavailable", true, "one", "1"})
	dead := l.replica("r1", respondWith("dead"), nil)
	dead.kill()
	expect(t, "a dead one's socket", l.get("/", nil).StatusCode, 503)
	go func() {
		time.Sleep(500 * time.Millisecond)
		l.replica("r2", respondWith("late"), nil)
	}()
	expect(t, "one that comes", string(l.get("/", nil).body), "late")
}

func TestSafeRequestsAreRetriedWhenAReplicaFails(t *testing.T) {
	l := startHarness(t, nil)
	var asked atomic.Int64
	dies := func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) == 1 {
			panic(http.ErrAbortHandler)
		}
		io.Copy(w, r.Body)
	}
	l.replica("r1", dies, nil)
	l.replica("r2", dies, nil)
	for _, c := range []struct {
		method, body string
		headers      map[string]string
		status       int
		asked        int64
	}{
		{"GET", "", nil, 200, 2},
		{"POST", "text", map[string]string{"Idempotency-Key": "k"}, 200, 2},
		{"POST", "text", nil, 502, 1},
		{"DELETE", "", nil, 502, 1},
	} {
		asked.Store(0)
		a := l.do(c.method, "/", c.headers, strings.NewReader(c.body))
		expect(t, c.method, []any{a.StatusCode, asked.Load()}, []any{c.status, c.asked})
		if a.StatusCode == 200 {
			expect(t, "body", string(a.body), c.body)
		} else {
			expect(t, "retryable", a.problem(t)["retryable"], false)
		}
	}
}

func TestRequestsGoToTheReplicaWithTheFewestRequests(t *testing.T) {
	l := startHarness(t, nil)
	release := make(chan struct{})
	busy := func(w http.ResponseWriter, r *http.Request) { <-release }
	l.replica("busy", busy, nil)
	asked := make(chan answer, 1)
	go func() { asked <- l.get("/", nil) }()
	time.Sleep(200 * time.Millisecond)
	l.replica("idle", respondWith("idle"), nil)
	time.Sleep(2 * scanInterval)
	for range 10 {
		expect(t, "who answers", string(l.get("/", nil).body), "idle")
	}
	close(release)
	<-asked
}

func TestResponsesThatAreNotTheApplicationsBecomeProblems(t *testing.T) {
	l := startHarness(t, nil)
	for status, wanted := range map[int]int{400: 400, 500: 500, 503: 500} {
		r := l.replica("r1", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Del("X-Request-Id")
			w.WriteHeader(status)
			io.WriteString(w, "Invalid HTTP request received.")
		}, nil)
		a := l.get("/", nil)
		a.problem(t)
		expect(t, "status", a.StatusCode, wanted)
		r.unlink()
		time.Sleep(2 * scanInterval)
	}
}

func TestBodiesAreStreamedInBothDirections(t *testing.T) {
	l := startHarness(t, nil)
	l.replica("r1", func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		if r.URL.Path == "/sized" {
			w.Header().Set("Content-Length", "12")
		}
		for buffer := make([]byte, 6); ; {
			n, err := io.ReadFull(r.Body, buffer)
			w.Write(buffer[:n])
			http.NewResponseController(w).Flush()
			if err != nil {
				return
			}
		}
	}, nil)
	for _, path := range []string{"/sized", "/chunked"} {
		body, said := io.Pipe()
		request, _ := http.NewRequest("POST", "http://"+l.address+path, body)
		go io.WriteString(said, "first.")
		response, err := l.client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 6)
		for _, piece := range []string{"first.", "second"} {
			if piece == "second" {
				go func() { io.WriteString(said, piece); said.Close() }()
			}
			if _, err := io.ReadFull(response.Body, got); err != nil || string(got) != piece {
				t.Fatalf("%s: %q %v", path, got, err)
			}
		}
		response.Body.Close()
	}
}

func TestWebSocketHandshakes(t *testing.T) {
	l := startHarness(t, nil)
	l.replica("r1", func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprintf(conn, "HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Request-Id: %s\r\n\r\n",
			r.Header.Get("X-Request-Id"))
		io.Copy(conn, conn)
	}, nil)
	good := map[string]string{
		"Connection": "keep-alive, Upgrade", "Upgrade": "WebSocket",
		"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
	}
	for _, c := range []struct {
		method string
		change map[string]string
		status int
	}{
		{"POST", nil, 405},
		{"GET", map[string]string{"Sec-WebSocket-Version": "12"}, 426},
		{"GET", map[string]string{"Sec-WebSocket-Version": ""}, 426},
		{"GET", map[string]string{"Sec-WebSocket-Key": "short"}, 400},
		{"GET", map[string]string{"Sec-WebSocket-Key": ""}, 400},
	} {
		headers := map[string]string{}
		for name, value := range good {
			headers[name] = value
		}
		for name, value := range c.change {
			headers[name] = value
		}
		a := l.do(c.method, "/", headers, nil)
		a.problem(t)
		expect(t, fmt.Sprint(c.change), a.StatusCode, c.status)
	}
	conn, buffered := upgrade(t, l, "/", good)
	defer conn.Close()
	for _, said := range []string{"hello", strings.Repeat("x", 1<<20)} {
		go io.WriteString(conn, said)
		got := make([]byte, len(said))
		if _, err := io.ReadFull(buffered, got); err != nil || string(got) != said {
			t.Fatal(err)
		}
	}
}

// upgrade opens a connection and switches its protocol.
func upgrade(t *testing.T, l *harness, path string, headers map[string]string) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn, response, buffered, err := tryUpgrade(l, path, headers)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(response.Status)
	}
	return conn, buffered
}

func tryUpgrade(l *harness, path string, headers map[string]string) (net.Conn, *http.Response, *bufio.Reader, error) {
	conn, err := net.Dial("tcp", l.address)
	if err != nil {
		return nil, nil, nil, err
	}
	conn.SetDeadline(time.Now().Add(testTimeout))
	request, _ := http.NewRequest("GET", "http://"+l.address+path, nil)
	for name, value := range headers {
		request.Header.Set(name, value)
	}
	buffered := bufio.NewReader(conn)
	err = request.Write(conn)
	response, failed := http.ReadResponse(buffered, request)
	return conn, response, buffered, errors.Join(err, failed)
}
