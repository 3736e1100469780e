package gateway

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// shortenClientTimeout lowers clientTimeout for one test.
func shortenClientTimeout(t *testing.T) {
	before := clientTimeout
	clientTimeout = 500 * time.Millisecond
	t.Cleanup(func() { clientTimeout = before })
}

func TestAClientThatReadsNothingIsCut(t *testing.T) {
	shortenClientTimeout(t)
	l := newTunnelHarness(t, nil)
	ended := make(chan error, 4)
	flood := func(w io.Writer) {
		for piece := make([]byte, 64<<10); ; {
			if _, err := w.Write(piece); err != nil {
				ended <- err
				return
			}
		}
	}
	l.web(func(w http.ResponseWriter, r *http.Request) { flood(w) })
	l.apiHandler = func(w http.ResponseWriter, r *http.Request) { flood(w) }
	for _, path := range []string{prefix + "/", "/flood"} {
		conn, err := net.Dial("tcp", l.address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n%s: %s\r\n\r\n", path, connectHeader, l.tokenHeader()[connectHeader])
	}
	time.Sleep(200 * time.Millisecond) // until the first request has reached the web server
	l.serveRaw(func(conn net.Conn, head string) {
		io.WriteString(conn, "HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		flood(conn)
	})
	conn, _ := upgrade(t, l.harness, prefix+"/", withHeaders(webSocketHeaders, pairs(l.tokenHeader())...))
	defer conn.Close()
	for range 3 {
		select {
		case <-ended:
		case <-time.After(testTimeout):
			t.Fatal("the server goes on")
		}
	}
}

func TestAClientThatReadsSlowlyIsNotCut(t *testing.T) {
	shortenClientTimeout(t)
	l := startHarness(t, nil)
	const size = 8 << 20
	l.replica("r1", func(w http.ResponseWriter, r *http.Request) { w.Write(make([]byte, size)) }, nil)
	response, err := l.client.Get("http://" + l.address)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	for range 8 {
		time.Sleep(clientTimeout / 3)
		if n, err := io.CopyN(io.Discard, response.Body, size/8); err != nil {
			t.Fatal(n, err)
		}
	}
}

func TestABodyThatStallsTimesOut(t *testing.T) {
	shortenClientTimeout(t)
	l := newTunnelHarness(t, nil)
	l.web(echoRequest)
	l.apiHandler = echoRequest
	for _, path := range []string{prefix + "/", "/"} {
		for _, length := range []string{"Content-Length: 10", "Content-Length: 1000000", "Transfer-Encoding: chunked"} {
			got := l.raw(fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\n%s: %s\r\n%s\r\n\r\n5\r\n", path, connectHeader,
				l.tokenHeader()[connectHeader], length))
			if !strings.HasPrefix(got, "HTTP/1.1 408 ") || !strings.Contains(got, "deadline_exceeded") {
				t.Errorf("%s %s: %q", path, length, got)
			}
		}
	}
}
