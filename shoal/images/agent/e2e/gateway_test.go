package e2e

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// gatewayHarness is the listening socket for gateways, and a replica that answers their lookups of tunnels to one node.
type gatewayHarness struct {
	t       testing.TB
	dir     string
	address string
	socket  *os.File
}

// newGatewayHarness serves public tunnels into n's container, at `/t/sb-1/<port>/`.
func newGatewayHarness(t testing.TB, n *node) *gatewayHarness {
	t.Helper()
	f := &gatewayHarness{t: t, dir: t.TempDir()}
	if err := os.Mkdir(filepath.Join(f.dir, "api"), 0o700); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.address = listener.Addr().String()
	if f.socket, err = listener.(*net.TCPListener).File(); err != nil {
		t.Fatal(err)
	}
	listener.Close()
	t.Cleanup(func() { f.socket.Close() })
	mux := http.NewServeMux()
	mux.HandleFunc("GET /tunnel-secret", func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(object{"secret": hex.EncodeToString(secret)})
	})
	mux.HandleFunc("POST /tunnel", func(w http.ResponseWriter, r *http.Request) {
		var asked struct{ Port int }
		json.NewDecoder(r.Body).Decode(&asked)
		grant := signed(tunnelClaims(object{"port": asked.Port}))
		json.NewEncoder(w).Encode(object{"open": true, "public": true, "relay": n.endpoint(), "grant": grant})
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Request-Id", r.Header.Get("X-Request-Id"))
		io.WriteString(w, "the API")
	})
	for _, name := range []string{"r1.internal", "r1.sock"} {
		unix, err := net.Listen("unix", filepath.Join(f.dir, "api", name))
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: mux}
		go server.Serve(unix)
		t.Cleanup(func() { server.Close() })
	}
	return f
}

// start starts a gateway and waits until it serves.
func (f *gatewayHarness) start() *exec.Cmd {
	f.t.Helper()
	config, _ := json.Marshal(object{
		"control": filepath.Join(f.dir, "gateway.sock"), "replicas": filepath.Join(f.dir, "api"), "drain_s": 10,
	})
	gateway := exec.Command(binary, "gateway")
	gateway.ExtraFiles = []*os.File{f.socket}
	gateway.Stdin = strings.NewReader(string(config) + "\n")
	gateway.Stderr = testLog{f.t, "gateway"}
	out, err := gateway.StdoutPipe()
	if err != nil {
		f.t.Fatal(err)
	}
	if err := gateway.Start(); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		gateway.Process.Kill()
		gateway.Wait()
	})
	if _, err := bufio.NewReader(out).ReadBytes('\n'); err != nil {
		f.t.Fatalf("the gateway did not start: %v", err)
	}
	return gateway
}

// web starts a server in the sandbox. It echoes after an upgrade. Other responses have 1 KiB, or the size in `?size=`.
func web(t testing.TB) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		size := 1 << 10
		fmt.Sscan(r.URL.Query().Get("size"), &size)
		if r.Header.Get("Upgrade") != "" {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			io.WriteString(conn, "HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: any\r\n\r\n")
			io.Copy(conn, conn)
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(size))
		for ; size > 0; size -= len(chunk) {
			w.Write(chunk[:min(size, len(chunk))])
		}
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return listener.Addr().(*net.TCPAddr).Port
}

func (f *gatewayHarness) url(port int) string {
	return fmt.Sprintf("http://%s/t/sb-1/%d/", f.address, port)
}

// get returns the size of the body.
func get(client *http.Client, url string) (int64, error) {
	response, err := client.Get(url)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	n, err := io.Copy(io.Discard, response.Body)
	if response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s", response.Status)
	}
	return n, err
}

func TestTheGatewayReachesServersInSandboxes(t *testing.T) {
	overBoth(t, theGatewayReachesServersInSandboxes)
}

func theGatewayReachesServersInSandboxes(t *testing.T, n *node) {
	f := newGatewayHarness(t, n)
	f.start()
	port := web(t)
	client := &http.Client{Timeout: patient}
	for _, size := range []int64{1 << 10, 32 << 20} {
		if n, err := get(client, fmt.Sprintf("%s?size=%d", f.url(port), size)); err != nil || n != size {
			t.Fatal(n, err)
		}
	}
	response, err := client.Get(f.url(nobody(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	if response.StatusCode != 503 || !strings.Contains(string(body), "nothing listens on port") {
		t.Fatalf("%d %s", response.StatusCode, body)
	}
	conn, err := net.Dial("tcp", f.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patient))
	fmt.Fprintf(conn, "GET /t/sb-1/%d/stay HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: any\r\n\r\n"+
		"said in advance", port)
	buffered := bufio.NewReader(conn)
	if answer, err := http.ReadResponse(buffered, nil); err != nil || answer.StatusCode != 101 {
		t.Fatal(answer, err)
	}
	conn.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(buffered); err != nil || string(got) != "said in advance" {
		t.Fatalf("%q %v", got, err)
	}
}

// Only requests in progress may fail: the next gateway accepts the connections that wait in the socket.
func TestAKilledGatewayLosesOnlyRequestsInProgress(t *testing.T) {
	f := newGatewayHarness(t, start(t))
	first := f.start()
	var failed atomic.Int64
	var clients sync.WaitGroup
	done := make(chan struct{})
	request := func() error {
		transport := &http.Transport{DisableKeepAlives: true}
		_, err := get(&http.Client{Transport: transport, Timeout: patient}, "http://"+f.address)
		return err
	}
	for range 4 {
		clients.Add(1)
		go func() {
			defer clients.Done()
			for {
				select {
				case <-done:
					return
				default:
					if request() != nil {
						failed.Add(1)
					}
				}
			}
		}()
	}
	time.Sleep(200 * time.Millisecond)
	first.Process.Kill()
	first.Wait()
	time.Sleep(200 * time.Millisecond)
	f.start()
	for range 100 {
		if err := request(); err != nil {
			t.Fatal(err)
		}
	}
	close(done)
	clients.Wait()
	if n := failed.Load(); n > 4 { // one for each client
		t.Fatalf("%d requests failed", n)
	}
}

// BenchmarkGatewayGet measures GETs of 1 KiB by 32 callers, BenchmarkGatewayDownload a GET of 100 MiB.
// BenchmarkDirectGet and BenchmarkDirectDownload measure the same without gateway, relay and agent.
func BenchmarkGatewayGet(b *testing.B)      { benchmarkGet(b, gatewayURL) }
func BenchmarkGatewayGetTLS(b *testing.B)   { benchmarkGet(b, gatewayURLOverTLS) }
func BenchmarkDirectGet(b *testing.B)       { benchmarkGet(b, directURL) }
func BenchmarkGatewayDownload(b *testing.B) { benchmarkDownload(b, gatewayURL) }
func BenchmarkDirectDownload(b *testing.B)  { benchmarkDownload(b, directURL) }

func gatewayURL(b *testing.B, port int) string {
	f := newGatewayHarness(b, start(b))
	f.start()
	return f.url(port)
}

// gatewayURLOverTLS has TLS between gateway and relay.
func gatewayURLOverTLS(b *testing.B, port int) string {
	f := newGatewayHarness(b, startTLS(b))
	f.start()
	return f.url(port)
}

func directURL(b *testing.B, port int) string { return fmt.Sprintf("http://127.0.0.1:%d/", port) }

func benchmarkGet(b *testing.B, urlOf func(*testing.B, int) string) {
	url := urlOf(b, web(b))
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 32}}
	callers := make(chan struct{}, 32)
	var all sync.WaitGroup
	b.ResetTimer()
	for range b.N {
		callers <- struct{}{}
		all.Add(1)
		go func() {
			defer func() { <-callers; all.Done() }()
			if _, err := get(client, url); err != nil {
				b.Error(err)
			}
		}()
	}
	all.Wait()
}

func benchmarkDownload(b *testing.B, urlOf func(*testing.B, int) string) {
	url := fmt.Sprintf("%s?size=%d", urlOf(b, web(b)), bulk)
	b.SetBytes(bulk)
	for b.Loop() {
		if n, err := get(http.DefaultClient, url); err != nil || n != bulk {
			b.Fatal(n, err)
		}
	}
}
