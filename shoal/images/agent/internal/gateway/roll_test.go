package gateway

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// refusesNobodyDuring sends requests while change runs, on old and on new connections. None may fail.
func refusesNobodyDuring(t *testing.T, l *harness, change func()) {
	t.Helper()
	var asked, failed atomic.Int64
	done := make(chan struct{})
	var clients sync.WaitGroup
	for i := range 8 {
		clients.Add(1)
		go func() {
			defer clients.Done()
			for {
				select {
				case <-done:
					return
				default:
				}
				headers := map[string]string{}
				if i%2 == 0 {
					headers["Connection"] = "close"
				}
				method, body := "GET", io.Reader(nil)
				if i%4 >= 2 {
					method, body = "POST", strings.NewReader("body") // never retried
				}
				asked.Add(1)
				if a, err := l.try(method, "/", headers, body); err != nil || a.StatusCode != 200 {
					failed.Add(1)
					t.Error(method, headers, err, string(a.body))
				}
			}
		}()
	}
	change()
	close(done)
	clients.Wait()
	if failed.Load() > 0 || asked.Load() < 100 {
		t.Fatalf("%d of %d failed", failed.Load(), asked.Load())
	}
}

func TestARollOfReplicasRefusesNobody(t *testing.T) {
	l := startHarness(t, nil)
	slow := func(w http.ResponseWriter, r *http.Request) { time.Sleep(time.Millisecond) }
	current := l.replica("r0", slow, nil)
	refusesNobodyDuring(t, l, func() {
		for i := range 3 {
			next := l.replica(fmt.Sprintf("r%d", i+1), slow, nil)
			go current.roll()
			current = next
			time.Sleep(10 * scanInterval)
		}
		// Also if there is none for a while.
		go current.roll()
		time.Sleep(5 * scanInterval)
		l.replica("last", slow, nil)
		time.Sleep(5 * scanInterval)
	})
}

func TestARollOfTheGatewayRefusesNobody(t *testing.T) {
	l := newHarness(t, nil)
	l.replica("r1", func(w http.ResponseWriter, r *http.Request) { time.Sleep(time.Millisecond) }, nil)
	stop := l.start()
	refusesNobodyDuring(t, l, func() {
		for range 2 {
			time.Sleep(200 * time.Millisecond)
			next := l.start()
			stop()
			stop = next
		}
	})
	if _, err := os.Stat(l.config.Control); err != nil {
		t.Fatalf("the successor's control socket is gone: %v", err)
	}
}

func TestADrainingGatewayFinishesItsRequests(t *testing.T) {
	l := newHarness(t, nil)
	release := make(chan struct{})
	l.replica("r1", func(w http.ResponseWriter, r *http.Request) {
		w.Write([]byte("begun "))
		http.NewResponseController(w).Flush()
		<-release
		io.WriteString(w, "ended")
	}, nil)
	stop := l.start()
	response, err := l.client.Get("http://" + l.address)
	if err != nil {
		t.Fatal(err)
	}
	l.start()
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	time.Sleep(100 * time.Millisecond)
	close(release)
	if body, err := io.ReadAll(response.Body); err != nil || string(body) != "begun ended" {
		t.Fatalf("%q %v", body, err)
	}
	l.client.CloseIdleConnections() // the gateway waits for them
	<-stopped
}

func TestTheControlSocket(t *testing.T) {
	l := startHarness(t, func(c *Config) { c.IdleExitS = 3600 })
	l.replica("r1", respondWith("hi"), nil)
	time.Sleep(2 * scanInterval)
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: l.config.Control, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	reader := bufio.NewReader(conn)
	io.WriteString(conn, `{"op":"info"}`+"\n")
	var told info
	if line, err := reader.ReadBytes('\n'); err != nil || json.Unmarshal(line, &told) != nil {
		t.Fatal(err)
	}
	expect(t, "info", []any{told.Pid, told.Version, told.Replicas}, []any{os.Getpid(), "test", 1})

	io.WriteString(conn, `{"op":"listener"}`+"\n")
	line, rights := make([]byte, 100), make([]byte, 100)
	n, m, _, _, err := conn.ReadMsgUnix(line, rights)
	if err != nil || !strings.HasPrefix(string(line[:n]), `{"ok":`) {
		t.Fatal(err, string(line[:n]))
	}
	messages, err := syscall.ParseSocketControlMessage(rights[:m])
	if err != nil || len(messages) != 1 {
		t.Fatal(err)
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fds[0]), "passed")
	defer file.Close()
	listener, err := net.FileListener(file)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "the socket that was passed", listener.Addr().String(), l.address)
	listener.Close()

	io.WriteString(conn, `{"op":"drain"}`+"\n")
	if _, err := reader.ReadBytes('\n'); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the gateway drains and ends", func() bool {
		_, err := os.Stat(l.config.Control)
		return os.IsNotExist(err)
	})
}

func TestStopDoesNotWaitForRequests(t *testing.T) {
	l := startHarness(t, nil)
	l.replica("r1", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, nil)
	asked := make(chan error, 1)
	go func() {
		_, err := l.try("GET", "/", nil, nil)
		asked <- err
	}()
	time.Sleep(2 * scanInterval)
	conn, err := net.Dial("unix", l.config.Control)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, `{"op":"stop"}`+"\n")
	if answer, err := bufio.NewReader(conn).ReadString('\n'); err != nil || answer != `{"ok":{}}`+"\n" {
		t.Fatal(answer, err)
	}
	if err := <-asked; err == nil {
		t.Error("the request was waited for")
	}
}

func TestAGatewayWithoutAControlConnectionEnds(t *testing.T) {
	l := newHarness(t, func(c *Config) { c.IdleExitS = 0.5 })
	ended := make(chan error, 1)
	go func() { ended <- Run(context.Background(), l.config, "test", l.socket, io.Discard) }()
	select {
	case err := <-ended:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(testTimeout):
		t.Fatal("it still runs")
	}
}

// writePair writes a self-signed certificate for `localhost`.
func writePair(t *testing.T, dir string, serial int64) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	writePair(t, dir, 1)
	l := startHarness(t, func(c *Config) {
		c.TLSCert, c.TLSKey = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	})
	l.replica("r1", echoRequest, nil)
	serial := func() string {
		conn, err := tls.Dial("tcp", l.address, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	expect(t, "serial", serial(), "1")
	for _, protocol := range []string{"HTTP/2.0", "HTTP/1.1"} {
		protocols := new(http.Protocols)
		protocols.SetHTTP1(protocol == "HTTP/1.1")
		protocols.SetHTTP2(protocol == "HTTP/2.0")
		transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, Protocols: protocols}
		response, err := (&http.Client{Transport: transport}).Get("https://" + l.address)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(response.Body)
		response.Body.Close()
		got := answer{response, body}.echoed(t)
		expect(t, "protocol", response.Proto, protocol)
		expect(t, "scheme", got.Headers["X-Forwarded-Proto"], "https")
		transport.CloseIdleConnections()
	}
	old := &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS11}
	if _, err := tls.Dial("tcp", l.address, old); err == nil {
		t.Error("TLS 1.1 is accepted")
	}
	if got := l.raw("GET / HTTP/1.1\r\nHost: x\r\n\r\n"); strings.Contains(got, " 200 ") {
		t.Error(got)
	}
	// If a pair cannot be loaded, the old one stays in use. The next valid pair is loaded.
	if err := os.WriteFile(filepath.Join(dir, "cert.pem"), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	time.Sleep(certificateCheckInterval + 100*time.Millisecond)
	expect(t, "serial", serial(), "1")
	writePair(t, dir, 2)
	eventually(t, "the new certificate", func() bool { return serial() == "2" })
}

func TestHTTP2WithoutTLS(t *testing.T) {
	l := startHarness(t, nil)
	l.replica("r1", echoRequest, nil)
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	response, err := client.Post("http://"+l.address+"/x", "text/plain", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	expect(t, "protocol", response.Proto, "HTTP/2.0")
	expect(t, "body", answer{response, body}.echoed(t).Body, "body")
}
