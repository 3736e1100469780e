package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// expose exposes a port and returns the address.
func (n *node) expose(port int, more object) string {
	n.t.Helper()
	answer := n.order("expose", port, more)
	ok, _ := answer["ok"].(object)
	address, _ := ok["address"].(string)
	if address == "" {
		n.t.Fatalf("not exposed: %v", answer)
	}
	return address
}

func (n *node) order(op string, port int, more object) object {
	n.t.Helper()
	order := object{"op": op, "key": key, "port": port, "sandbox": "sb-test"}
	for name, value := range more {
		order[name] = value
	}
	line, _ := json.Marshal(order)
	return n.control(string(line))
}

// ask connects, says the words, ends, and returns what comes.
func ask(t testing.TB, address, words string) (string, error) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patient))
	if _, err := io.WriteString(conn, words); err != nil {
		return "", err
	}
	conn.(*net.TCPConn).CloseWrite()
	got, err := io.ReadAll(conn)
	return string(got), err
}

func TestAnExposedPortLeadsInside(t *testing.T) {
	n := start(t)
	port := inside(t, "127.0.0.1:0", echo)
	address := n.expose(port, nil)
	if got, err := ask(t, address, "hello"); got != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	if again := n.expose(port, nil); again != address {
		t.Errorf("%s, then %s", address, again)
	}
	listed := n.control(`{"op":"info"}`)["exposed"].([]any)
	if len(listed) != 1 || listed[0].(object)["address"] != address {
		t.Errorf("%v", listed)
	}
	// Where nobody listens the connection is refused as well as it can be.
	if got, err := ask(t, n.expose(nobody(t), nil), "hello"); err == nil {
		t.Errorf("somebody said %q", got)
	}
}

func TestAPrivatePortWantsAToken(t *testing.T) {
	n := start(t)
	port := inside(t, "127.0.0.1:0", echo)
	address := n.expose(port, object{"private": true})
	for name, claims := range map[string]object{
		"all ports": tunnelClaims(nil), "this port": tunnelClaims(object{"port": port}),
	} {
		if got, err := ask(t, address, signed(claims)+"\nhello"); got != "hello" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for name, first := range map[string]string{
		"another port":      signed(tunnelClaims(object{"port": port ^ 1})) + "\n",
		"no scope":          signed(tunnelClaims(object{"scopes": []string{"exec"}})) + "\n",
		"expired":           signed(tunnelClaims(object{"exp": 1})) + "\n",
		"another container": signed(tunnelClaims(object{"key": "c-other"})) + "\n",
		"nonsense":          "GET / HTTP/1.1\r\n",
		"no end":            signed(tunnelClaims(nil)),
		"too long":          strings.Repeat("x", 5000) + "\n",
		"nothing":           "",
	} {
		if got, _ := ask(t, address, first+"hello"); got != "" {
			t.Errorf("%s: let in: %q", name, got)
		}
	}
}

func TestAPassOpensItsPortWhileThatIsExposed(t *testing.T) {
	n := start(t)
	port := inside(t, "127.0.0.1:0", echo)
	address := n.expose(port, object{"private": true})
	pass := tunnelClaims(object{"scopes": []string{"pass"}, "port": port})
	if got, err := ask(t, address, signed(pass)+"\nhello"); got != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	other := n.expose(inside(t, "127.0.0.1:0", echo), object{"private": true})
	if got, _ := ask(t, other, signed(pass)+"\nhello"); got != "" {
		t.Errorf("another port let it in: %q", got)
	}
	dialled := func() {
		t.Helper()
		for _, where := range []int{port, 0} {
			_, answers := n.tunnel(pass, where, "")
			if refused, _ := answers[0]["error"].(object); refused["code"] != "permission_denied" {
				t.Errorf("port %d by the relay's own: %v", where, answers)
			}
		}
	}
	dialled()
	n.order("unexpose", port, nil)
	dialled()
	if got, _ := ask(t, address, signed(pass)+"\nhello"); got != "" {
		t.Errorf("a port that was taken back let it in: %q", got)
	}
}

func TestASilentConnectionToAPrivatePortIsClosed(t *testing.T) {
	n := start(t)
	conn, err := net.Dial("tcp", n.expose(inside(t, "127.0.0.1:0", echo), object{"private": true}))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patient))
	if _, err := conn.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("it stands: %v", err)
	}
}

// standing is a connection to an exposed port that stands.
func standing(t testing.TB, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patient))
	fmt.Fprint(conn, "x")
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func closed(t testing.TB, conn net.Conn, address string) {
	t.Helper()
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("the connection still stands")
	}
	if again, err := net.Dial("tcp", address); err == nil {
		again.Close()
		t.Errorf("%s still listens", address)
	}
}

func TestWhatIsTakenBackIsClosed(t *testing.T) {
	n := start(t)
	port, other := inside(t, "127.0.0.1:0", echo), inside(t, "127.0.0.1:0", echo)
	address, kept := n.expose(port, nil), n.expose(other, nil)
	conn, stays := standing(t, address), standing(t, kept)
	n.order("unexpose", port, nil)
	n.order("unexpose", port, nil)
	closed(t, conn, address)
	fmt.Fprint(stays, "x")
	if _, err := io.ReadFull(stays, make([]byte, 1)); err != nil {
		t.Errorf("another port's connection: %v", err)
	}
	n.control(`{"op":"remove","key":"` + key + `"}`)
	closed(t, stays, kept)
	if left := n.control(`{"op":"info"}`)["exposed"].([]any); len(left) != 0 {
		t.Errorf("%v", left)
	}
}

func TestAPortThatBecomesPrivateKeepsItsNumber(t *testing.T) {
	n := start(t)
	port := inside(t, "127.0.0.1:0", echo)
	address := n.expose(port, nil)
	conn := standing(t, address)
	if again := n.expose(port, object{"private": true}); again != address {
		t.Errorf("%s, then %s", address, again)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("who came without a token is still there")
	}
	if got, err := ask(t, address, signed(tunnelClaims(nil))+"\nhello"); got != "hello" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestTheSamePortIsThereAfterARestart(t *testing.T) {
	n := start(t)
	port := inside(t, "127.0.0.1:0", echo)
	address := n.expose(port, nil)
	standing(t, address)
	n.killRelay()
	n.startRelay(n.address)
	_, number, _ := net.SplitHostPort(address)
	var listen int
	fmt.Sscan(number, &listen)
	if again := n.expose(port, object{"listen": listen}); again != address {
		t.Errorf("%s, then %s", address, again)
	}
	if got, err := ask(t, address, "hello"); got != "hello" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestWhatCannotBeExposed(t *testing.T) {
	n := start(t)
	taken := inside(t, "127.0.0.1:0", echo)
	for name, c := range map[string]struct {
		port int
		more object
		want any
	}{
		"no port":       {0, nil, "invalid_request"},
		"no container":  {80, object{"key": "c-other"}, "not_found"},
		"all addresses": {80, object{"bind": "0.0.0.0"}, "invalid_request"},
		"a name":        {80, object{"bind": "localhost"}, "invalid_request"},
		"foreign":       {80, object{"bind": "203.0.113.9"}, "invalid_request"},
		"no listen":     {80, object{"listen": 65536}, "invalid_request"},
		"taken":         {80, object{"listen": taken}, "already_exists"},
	} {
		if answer := n.order("expose", c.port, c.more); answer["code"] != c.want {
			t.Errorf("%s: %v", name, answer)
		}
	}
	for port := 1; port <= 64; port++ {
		n.expose(port, nil)
	}
	if answer := n.order("expose", 65, nil); answer["code"] != "quota_exceeded" {
		t.Errorf("%v", answer)
	}
}

func TestSilentConnectionsAreBoundedForEachPort(t *testing.T) {
	n := start(t)
	port := inside(t, "127.0.0.1:0", echo)
	private := n.expose(port, object{"private": true})
	for range 512 {
		conn, err := net.Dial("tcp", private)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	if got, err := ask(t, private, signed(tunnelClaims(nil))+"\nhello"); got != "" {
		t.Errorf("one more was let in: %q, %v", got, err)
	}
	other := inside(t, "127.0.0.1:0", echo)
	if got, err := ask(t, n.expose(other, nil), "hello"); got != "hello" {
		t.Errorf("another port: %q, %v", got, err)
	}
	eventually(t, "there is room again", func() bool {
		got, _ := ask(t, private, signed(tunnelClaims(nil))+"\nhello")
		return got == "hello"
	})
}

func TestManyComeAtOnce(t *testing.T) {
	n := start(t)
	address := n.expose(inside(t, "127.0.0.1:0", echo), nil)
	failures := make(chan error)
	for i := range 400 {
		go func() {
			words := strings.Repeat(fmt.Sprint(i), 1_000)
			got, err := ask(t, address, words)
			if err == nil && got != words {
				err = fmt.Errorf("%d bytes of %d", len(got), len(words))
			}
			failures <- err
		}()
	}
	for range 400 {
		if err := <-failures; err != nil {
			t.Error(err)
		}
	}
}
