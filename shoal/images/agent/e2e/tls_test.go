package e2e

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// stream is a connection that can be half-closed, and broken by SetLinger(0) and Close.
type stream interface {
	net.Conn
	CloseWrite() error
	SetLinger(seconds int) error
}

type tlsStream struct {
	*tls.Conn
	tcp    *net.TCPConn
	abrupt bool
}

func (s *tlsStream) SetLinger(seconds int) error {
	s.abrupt = true
	return s.tcp.SetLinger(seconds)
}

func (s *tlsStream) Close() error {
	if s.abrupt {
		return s.tcp.Close()
	}
	return s.Conn.Close()
}

// startTLS is start with a relay that speaks TLS.
func startTLS(t testing.TB) *node {
	t.Helper()
	n := openNode(&node{t: t, root: t.TempDir(), secure: true})
	n.startAgent()
	return n
}

// connect is a connection to the relay, on which nothing was said yet.
func (n *node) connect() stream {
	n.t.Helper()
	conn, err := net.Dial("tcp", n.address)
	if err != nil {
		n.t.Fatal(err)
	}
	tcp := conn.(*net.TCPConn)
	if !n.secure {
		return tcp
	}
	secured := tls.Client(tcp, &tls.Config{InsecureSkipVerify: true})
	if err := secured.Handshake(); err != nil {
		n.t.Fatal(err)
	}
	digest := sha256.Sum256(secured.ConnectionState().PeerCertificates[0].Raw)
	if hex.EncodeToString(digest[:]) != n.fingerprint {
		n.t.Fatal("the relay told another fingerprint")
	}
	return &tlsStream{Conn: secured, tcp: tcp}
}

// endpoint is the relay's address as clients get it.
func (n *node) endpoint() string {
	if !n.secure {
		return n.address
	}
	return "tls://" + n.fingerprint + "@" + n.address
}

func TestRequestsAndFilesOverTLS(t *testing.T) {
	n := startTLS(t)
	c := n.dial()
	if r := c.run(nil, "echo", "hello").ended(t, 0); string(r.out) != "hello\n" {
		t.Errorf("%q", r.out)
	}
	if r := c.run(nil, sh("head -c 3000000 /dev/zero")...); len(r.out) != 3_000_000 {
		t.Errorf("%d bytes", len(r.out))
	}
	c.conn.Close()
	eventually(t, "the relay lets it go", func() bool { return n.control(`{"op":"info"}`)["connections"] == 0.0 })
}

func TestTheFingerprintOutlivesTheRelay(t *testing.T) {
	n := startTLS(t)
	before := n.fingerprint
	if len(before) != 64 || n.control(`{"op":"info"}`)["fingerprint"] != before {
		t.Fatalf("%q", before)
	}
	n.killRelay()
	n.startRelay(n.address)
	if n.fingerprint != before {
		t.Error("clients do not know the new relay")
	}
	n.dial().run(nil, "true").ended(t, 0)
}

func TestARelayWithTLSTakesNothingInClear(t *testing.T) {
	n := startTLS(t)
	conn, err := net.Dial("tcp", n.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patient))
	conn.Write([]byte("\x00\x00\x00\x20\x00\x00\x00\x00\x00{}"))
	if got, err := io.ReadAll(conn); len(got) > 0 && got[0] != 21 { // an alert of TLS
		t.Errorf("%q, %v", got, err)
	}
	old := tls.Client(must(net.Dial("tcp", n.address)), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
	defer old.Close()
	if err := old.Handshake(); err == nil {
		t.Error("it speaks TLS 1.2")
	}
}

func TestTheGatewayTrustsOneCertificateOnly(t *testing.T) {
	n := startTLS(t)
	f := newGatewayHarness(t, n)
	f.start()
	url := f.url(inside(t, "127.0.0.1:0", echo))
	n.fingerprint = strings.Repeat("0", 64)
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusServiceUnavailable {
		t.Error(response.Status)
	}
	if open := n.control(`{"op":"info"}`)["connections"]; open != 0.0 {
		t.Errorf("%v connections", open)
	}
}

func must(conn net.Conn, err error) net.Conn {
	if err != nil {
		panic(err)
	}
	return conn
}
