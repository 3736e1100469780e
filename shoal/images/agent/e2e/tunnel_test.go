package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"io"
	"math/rand"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"shoal/agent/internal/frame"
	"shoal/agent/internal/token"
)

// inside listens where a server in the sandbox would: these agents share the network of the tests. It returns its port.
func inside(t testing.TB, address string, serve func(conn *net.TCPConn)) int {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn.(*net.TCPConn))
			}()
		}
	}()
	return listener.Addr().(*net.TCPAddr).Port
}

func echo(conn *net.TCPConn) { io.Copy(conn, conn) }

// nobody is a port on which nobody listens, nor will while the test lasts: it is taken.
func nobody(t testing.TB) int {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	bound, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return bound.(*syscall.SockaddrInet4).Port
}

// tunnel dials a port. ahead goes right behind the HELLO. The answers are the relay's and, where that admits, the agent's.
func (n *node) tunnel(claims object, port int, ahead string) (stream, []object) {
	n.t.Helper()
	hello, _ := json.Marshal(object{"v": 1, "token": signed(claims), "wait_ms": 10_000, "dial": port})
	conn := n.connect()
	n.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patient))
	conn.Write(append(frame.Append(nil, frame.Hello, 0, hello), ahead...))
	var answers []object
	for range 2 {
		answer := readHello(n.t, conn)
		answers = append(answers, answer)
		if answer["ok"] != true {
			break
		}
	}
	return conn, answers
}

// readHello reads one HELLO and not a byte more.
func readHello(t testing.TB, conn net.Conn) object {
	t.Helper()
	header := make([]byte, frame.HeaderSize)
	if _, err := io.ReadFull(conn, header); err != nil {
		t.Fatalf("no HELLO: %v", err)
	}
	payload := make([]byte, int(header[2])<<8+int(header[3])-5)
	if _, err := io.ReadFull(conn, payload); err != nil {
		t.Fatal(err)
	}
	var answer object
	if err := json.Unmarshal(payload, &answer); err != nil || header[4] != byte(frame.Hello) {
		t.Fatalf("not a HELLO: %v %q", header, payload)
	}
	return answer
}

func tunnelClaims(more object) object {
	claims := object{"sandbox": "sb-test", "key": key, "scopes": []string{"tunnel"}, "exp": time.Now().Add(time.Hour).Unix()}
	for name, value := range more {
		claims[name] = value
	}
	return claims
}

// joined is a tunnel that stands.
func (n *node) joined(port int, ahead string) stream {
	n.t.Helper()
	conn, answers := n.tunnel(tunnelClaims(nil), port, ahead)
	if len(answers) != 2 || answers[1]["ok"] != true {
		n.t.Fatalf("not joined: %v", answers)
	}
	return conn
}

func codeOf(answers []object) any {
	last, _ := answers[len(answers)-1]["error"].(object)
	return last["code"]
}

func TestATunnelCarriesRawBytesAndHalfCloses(t *testing.T) {
	overBoth(t, aTunnelCarriesRawBytesAndHalfCloses)
}

func aTunnelCarriesRawBytesAndHalfCloses(t *testing.T, n *node) {
	// It answers only when it has heard all, and what comes is what went.
	port := inside(t, "127.0.0.1:0", func(conn *net.TCPConn) {
		hash := sha256.New()
		io.Copy(hash, conn)
		conn.Write(hash.Sum(nil))
	})
	conn := n.joined(port, "ahead ")
	sent := make([]byte, 3<<20)
	rand.New(rand.NewSource(1)).Read(sent)
	if _, err := conn.Write(sent); err != nil {
		t.Fatal(err)
	}
	conn.CloseWrite()
	got, err := io.ReadAll(conn)
	want := sha256.Sum256(append([]byte("ahead "), sent...))
	if err != nil || !bytes.Equal(got, want[:]) {
		t.Errorf("%x, %v", got, err)
	}
}

func TestAServerMayHalfCloseFirst(t *testing.T) { overBoth(t, aServerMayHalfCloseFirst) }

func aServerMayHalfCloseFirst(t *testing.T, n *node) {
	heard := make(chan string, 1)
	port := inside(t, "127.0.0.1:0", func(conn *net.TCPConn) {
		conn.Write([]byte("bye"))
		conn.CloseWrite()
		rest, _ := io.ReadAll(conn)
		heard <- string(rest)
	})
	conn := n.joined(port, "")
	if got, err := io.ReadAll(conn); err != nil || string(got) != "bye" {
		t.Fatalf("%q, %v", got, err)
	}
	conn.Write([]byte("still here"))
	conn.CloseWrite()
	if got := <-heard; got != "still here" {
		t.Errorf("%q", got)
	}
}

func TestAServerOnIPv6OnlyIsFound(t *testing.T) {
	n := start(t)
	conn := n.joined(inside(t, "[::1]:0", echo), "six")
	conn.CloseWrite()
	if got, _ := io.ReadAll(conn); string(got) != "six" {
		t.Errorf("%q", got)
	}
}

func TestWhoMayDialWhat(t *testing.T) {
	n := start(t)
	port := inside(t, "127.0.0.1:0", echo)
	for _, c := range []struct {
		name   string
		claims object
		port   int
		want   any
	}{
		{"all ports", nil, port, nil},
		{"this port", object{"port": port}, port, nil},
		{"another port", object{"port": port ^ 1}, port, "permission_denied"},
		{"no scope", object{"scopes": []string{"exec", "files", "admin"}}, port, "permission_denied"},
		{"expired", object{"exp": 1}, port, "unauthenticated"},
		{"no such container", object{"key": "c-other"}, port, "not_found"},
		{"no port", nil, 65536, "invalid_request"},
		{"negative", nil, -1, "invalid_request"},
		{"no port in the token", object{"port": 65536}, port, "unauthenticated"},
	} {
		_, answers := n.tunnel(tunnelClaims(c.claims), c.port, "")
		if got := codeOf(answers); got != c.want {
			t.Errorf("%s: %v", c.name, answers)
		}
	}
	_, answers := n.tunnel(tunnelClaims(nil), nobody(t), "")
	if fault, _ := answers[1]["error"].(object); fault["code"] != "unavailable" || !strings.Contains(fault["message"].(string), "nothing listens") {
		t.Errorf("nobody there: %v", answers)
	}
	// A token for a port is good for nothing else, not even with other scopes.
	claims := tunnelClaims(object{"port": port, "scopes": []string{"tunnel", "exec", "admin"}})
	hello, _ := json.Marshal(object{"v": 1, "token": signed(claims)})
	conn, f, err := n.raw(string(hello))
	defer conn.Close()
	if err != nil || !bytes.Contains(f.Payload, []byte("permission_denied")) {
		t.Errorf("%s, %v", f.Payload, err)
	}
}

func TestABrokenConnectionIsNoEnd(t *testing.T) { overBoth(t, aBrokenConnectionIsNoEnd) }

func aBrokenConnectionIsNoEnd(t *testing.T, n *node) {
	ended := make(chan error, 1)
	port := inside(t, "127.0.0.1:0", func(conn *net.TCPConn) {
		_, err := io.Copy(io.Discard, conn)
		ended <- err
	})
	conn := n.joined(port, "half a request")
	conn.SetLinger(0)
	conn.Close()
	if err := <-ended; err == nil {
		t.Error("the server was told of an orderly end")
	}
	port = inside(t, "127.0.0.1:0", func(conn *net.TCPConn) {
		conn.Write([]byte("half an answer"))
		io.ReadFull(conn, make([]byte, 1))
		conn.SetLinger(0)
	})
	conn = n.joined(port, "x")
	if got, err := io.ReadAll(conn); err == nil {
		t.Errorf("the client was told of an orderly end after %q", got)
	}
}

func TestAClientThatIsGoneAfterItsHalfCloseIsNoticed(t *testing.T) {
	overBoth(t, aClientThatIsGoneAfterItsHalfCloseIsNoticed)
}

func aClientThatIsGoneAfterItsHalfCloseIsNoticed(t *testing.T, n *node) {
	// A server that hears the end and neither answers nor ends: without the client nothing will ever move again.
	heard, enough := make(chan struct{}), make(chan struct{})
	defer close(enough)
	conn := n.joined(inside(t, "127.0.0.1:0", func(conn *net.TCPConn) {
		io.Copy(io.Discard, conn)
		close(heard)
		<-enough
	}), "")
	conn.CloseWrite()
	<-heard
	if open := n.control(`{"op":"info"}`)["connections"]; open != 1.0 {
		t.Fatalf("a half-closed connection is no more: %v", open)
	}
	conn.SetLinger(0)
	conn.Close()
	eventually(t, "relay and agent let it go", func() bool { return n.control(`{"op":"info"}`)["connections"] == 0.0 })
	if r := n.dial().do(object{"op": "idle", "after_ms": 10}); r.ok == nil {
		t.Errorf("%v", r.fault)
	}
}

func TestAnOpenTunnelIsActivity(t *testing.T) {
	n := start(t)
	conn := n.joined(inside(t, "127.0.0.1:0", echo), "")
	idle := n.dial().open(object{"op": "idle", "after_ms": 100}, nil)
	select {
	case f := <-idle.frames:
		t.Fatalf("idle with an open tunnel: %s", f.Payload)
	case <-time.After(400 * time.Millisecond):
	}
	conn.Close()
	if r := idle.result(); r.ok == nil {
		t.Errorf("%v", r.fault)
	}
}

func TestTunnelsAreBounded(t *testing.T) {
	n := start(t)
	port := inside(t, "127.0.0.1:0", echo)
	conns := make([]stream, 512)
	for i := range conns {
		conns[i] = n.joined(port, "")
	}
	if _, answers := n.tunnel(tunnelClaims(nil), port, ""); codeOf(answers) != "quota_exceeded" {
		t.Errorf("%v", answers)
	}
	n.dial().run(nil, "true").ended(t, 0) // requests have room of their own
	for _, conn := range conns {
		conn.Close()
	}
	eventually(t, "there is room again", func() bool {
		_, answers := n.tunnel(tunnelClaims(nil), port, "")
		return codeOf(answers) == nil
	})
}

func TestTheAgentItselfChecksTheScope(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, key), 0o755); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", filepath.Join(dir, key, "relay.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	n := &node{t: t, root: dir}
	n.startAgent()
	for payload, want := range map[string]string{
		`{"v":1,"scopes":["exec","files","admin"],"dial":80}`:                "permission_denied",
		`{"v":1,"scopes":["tunnel"],"dial":70000}`:                           "invalid_request",
		`{"v":1,"scopes":["tunnel"],"dial":` + strconv.Itoa(nobody(t)) + `}`: "unavailable",
	} {
		conn, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(patient))
		shown := make([]byte, token.AgentSecretSize)
		if _, err := io.ReadFull(conn, shown); err != nil || !bytes.Equal(shown, token.AgentSecret(secret, key)) {
			t.Errorf("it showed %x, %v", shown, err)
		}
		conn.Write(frame.Append(nil, frame.Hello, 0, []byte(payload)))
		if got := codeOf([]object{readHello(t, conn)}); got != want {
			t.Errorf("%s: %v", payload, got)
		}
		conn.Close()
	}
}
