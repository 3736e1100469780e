package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const testTimeout = 20 * time.Second

// harness is a gateway on a real port with a directory of replicas.
type harness struct {
	t       testing.TB
	config  Config
	address string
	socket  *os.File // the listening socket
	client  *http.Client
}

// newHarness makes the socket and the configuration. change may be nil.
func newHarness(t testing.TB, change func(*Config)) *harness {
	t.Helper()
	dir := t.TempDir()
	l := &harness{t: t, config: Config{
		Listener: 3, Control: filepath.Join(dir, "gateway.sock"), Replicas: filepath.Join(dir, "api"),
		HeaderTimeoutS: 10, IdleTimeoutS: 75, DrainS: 20, Auth: true, Confine: true,
	}}
	if change != nil {
		change(&l.config)
	}
	if err := l.config.check(); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(l.config.Replicas, 0o700); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.address = listener.Addr().String()
	if l.socket, err = listener.(*net.TCPListener).File(); err != nil {
		t.Fatal(err)
	}
	listener.Close()
	t.Cleanup(func() { l.socket.Close() })
	l.client = &http.Client{
		Transport:     &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       testTimeout,
	}
	t.Cleanup(l.client.CloseIdleConnections)
	return l
}

// start runs a gateway on the socket, beside those that run already. It returns a function that stops it.
func (l *harness) start() (stop func()) {
	l.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, said := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := Run(ctx, l.config, "test", l.socket, said)
		said.CloseWithError(io.EOF)
		ended <- err
	}()
	var line struct{ Pid int }
	if err := json.NewDecoder(ready).Decode(&line); err != nil || line.Pid == 0 {
		l.t.Fatal(err, <-ended)
	}
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-ended:
				if err != nil && err != http.ErrServerClosed {
					l.t.Error(err)
				}
			case <-time.After(2 * testTimeout):
				l.t.Error("the gateway does not end")
			}
		})
	}
	l.t.Cleanup(func() {
		l.client.CloseIdleConnections()
		stop()
	})
	return stop
}

func startHarness(t testing.TB, change func(*Config)) *harness {
	t.Helper()
	l := newHarness(t, change)
	l.start()
	return l
}

// fakeReplica serves on both sockets of a replica.
type fakeReplica struct {
	l        *harness
	id       string
	servers  [2]*http.Server
	internal http.HandlerFunc
}

// replica starts a fake replica that sets X-Request-Id, as the application does.
func (l *harness) replica(id string, public, internal http.HandlerFunc) *fakeReplica {
	l.t.Helper()
	r := &fakeReplica{l: l, id: id}
	marked := func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("X-Request-Id", q.Header.Get("X-Request-Id"))
		public(w, q)
	}
	for i, each := range []struct {
		suffix  string
		handler http.HandlerFunc
	}{{internalSuffix, internal}, {publicSuffix, marked}} {
		listener, err := net.Listen("unix", filepath.Join(l.config.Replicas, id+each.suffix))
		if err != nil {
			l.t.Fatal(err)
		}
		listener.(*net.UnixListener).SetUnlinkOnClose(false)
		r.servers[i] = &http.Server{Handler: each.handler, IdleTimeout: time.Hour}
		go r.servers[i].Serve(listener)
	}
	l.t.Cleanup(r.kill)
	return r
}

func (r *fakeReplica) unlink() {
	for _, suffix := range []string{publicSuffix, internalSuffix} {
		os.Remove(filepath.Join(r.l.config.Replicas, r.id+suffix))
	}
}

// roll ends the replica as real ones end: it removes the sockets first.
func (r *fakeReplica) roll() {
	r.unlink()
	time.Sleep(5 * scanInterval)
	for _, server := range r.servers {
		server.Shutdown(context.Background())
	}
}

// kill ends the replica at once and leaves its sockets.
func (r *fakeReplica) kill() {
	for _, server := range r.servers {
		server.Close()
	}
}

func respondWith(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, text) }
}

// echoRequest answers with the request as JSON.
func echoRequest(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	headers := map[string]string{"Host": r.Host}
	for name, values := range r.Header {
		headers[name] = strings.Join(values, "|")
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(echoedRequest{Method: r.Method, Path: r.RequestURI, Headers: headers, Body: string(body),
		Length: r.ContentLength})
}

type echoedRequest struct {
	Method, Path, Body string
	Headers            map[string]string
	Length             int64
}

// answer is a response with its body read.
type answer struct {
	*http.Response
	body []byte
}

func (a answer) echoed(t testing.TB) (s echoedRequest) {
	t.Helper()
	if err := json.Unmarshal(a.body, &s); err != nil {
		t.Fatalf("%d %s: %v", a.StatusCode, a.body, err)
	}
	return s
}

// problem returns the problem document in the body. Its request id must be that of the header.
func (a answer) problem(t testing.TB) map[string]any {
	t.Helper()
	p := map[string]any{}
	if err := json.Unmarshal(a.body, &p); err != nil || a.Header.Get("Content-Type") != problemType {
		t.Fatalf("%d %s: %v", a.StatusCode, a.body, err)
	}
	ids := a.Header["X-Request-Id"]
	if len(ids) != 1 || ids[0] != p["request_id"] || p["status"] != float64(a.StatusCode) {
		t.Fatalf("%v %s", ids, a.body)
	}
	return p
}

func (l *harness) do(method, path string, headers map[string]string, body io.Reader) answer {
	l.t.Helper()
	a, err := l.try(method, path, headers, body)
	if err != nil {
		l.t.Fatal(err)
	}
	return a
}

func (l *harness) try(method, path string, headers map[string]string, body io.Reader) (answer, error) {
	request, err := http.NewRequest(method, "http://"+l.address+path, body)
	if err != nil {
		return answer{}, err
	}
	for name, value := range headers {
		if name == "Host" {
			request.Host = value
		} else {
			request.Header.Set(name, value)
		}
	}
	response, err := l.client.Do(request)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return answer{response, text}, err
}

func (l *harness) get(path string, headers map[string]string) answer {
	l.t.Helper()
	return l.do("GET", path, headers, nil)
}

// raw sends bytes and returns what it receives until EOF.
func (l *harness) raw(sent string) string {
	l.t.Helper()
	conn, err := net.Dial("tcp", l.address)
	if err != nil {
		l.t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(testTimeout))
	io.WriteString(conn, sent)
	var got bytes.Buffer
	io.Copy(&got, conn)
	return got.String()
}

func eventually(t testing.TB, what string, found func() bool) {
	t.Helper()
	for end := time.Now().Add(testTimeout); !found(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("timed out: " + what)
		}
	}
}

func expect(t testing.TB, what string, got, wanted any) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(wanted) {
		t.Fatalf("%s: %v instead of %v", what, got, wanted)
	}
}
