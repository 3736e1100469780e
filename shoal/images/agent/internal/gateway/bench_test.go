package gateway

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// answerLoop answers each request on a connection with the same bytes, at the least cost.
func answerLoop(conn net.Conn, answer []byte) {
	defer conn.Close()
	buffered := bufio.NewReader(conn)
	for {
		length := 0
		for {
			line, err := buffered.ReadSlice('\n')
			if err != nil {
				return
			}
			if len(line) == 2 {
				break
			}
			if strings.HasPrefix(string(line), "Content-Length: ") {
				fmt.Sscan(string(line[len("Content-Length: "):]), &length)
			}
		}
		if _, err := buffered.Discard(length); err != nil {
			return
		}
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}

func answerAll(b *testing.B, listener net.Listener, answer string) {
	b.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go answerLoop(conn, []byte(answer))
		}
	}()
}

// exchange repeats one request, and reads a response with a body of size bytes each time.
func exchange(b *testing.B, address, request string, size int) {
	b.RunParallel(func(pb *testing.PB) {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			b.Error(err)
			return
		}
		defer conn.Close()
		buffered := bufio.NewReaderSize(conn, 256<<10)
		for pb.Next() {
			io.WriteString(conn, request)
			for first := true; ; first = false {
				line, err := buffered.ReadSlice('\n')
				if err != nil || (first && !strings.HasPrefix(string(line), "HTTP/1.1 200 ")) {
					b.Errorf("%q %v", line, err)
					return
				}
				if len(line) == 2 {
					break
				}
			}
			if _, err := buffered.Discard(size); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

const execAnswer = `{"id":"p-0123456789","returncode":0,"timed_out":false,"truncated":false,` +
	`"stdout":"hello\n","stderr":"","duration":0.0012}`

// BenchmarkExec measures `POST …/exec` through the gateway, with a minimal client and replica.
func BenchmarkExec(b *testing.B) {
	l := startHarness(b, nil)
	listener, err := net.Listen("unix", filepath.Join(l.config.Replicas, "r1.sock"))
	if err != nil {
		b.Fatal(err)
	}
	answerAll(b, listener, fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n"+
		"Content-Type: application/json\r\nX-Request-Id: x\r\n\r\n%s", len(execAnswer), execAnswer))
	l.get("/", nil)
	body := `{"argv":["true"]}`
	b.SetParallelism(16)
	b.ReportAllocs()
	exchange(b, l.address, fmt.Sprintf("POST /v1/sandboxes/sb-1/exec HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n"+
		"User-Agent: bench\r\nAuthorization: Bearer %s\r\n"+
		"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", apiToken, len(body), body), len(execAnswer))
}

// BenchmarkTunnel measures a GET of 1 KiB through a tunnel, and BenchmarkTunnelDownload one of 8 MiB.
func BenchmarkTunnel(b *testing.B)         { throughTunnel(b, 1<<10) }
func BenchmarkTunnelDownload(b *testing.B) { throughTunnel(b, 8<<20) }

func throughTunnel(b *testing.B, size int) {
	l := newTunnelHarness(b, nil)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	answerAll(b, listener, fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\nContent-Type: text/plain\r\n\r\n%s",
		size, strings.Repeat("x", size)))
	l.locked(func() { l.servers[sandboxPort] = listener.Addr().String() })
	request := fmt.Sprintf("GET %s/ HTTP/1.1\r\nHost: x\r\n%s: %s\r\n\r\n",
		prefix, connectHeader, l.tokenHeader()[connectHeader])
	if a := l.get(prefix+"/", l.tokenHeader()); a.StatusCode != http.StatusOK {
		b.Fatal(a.Status)
	}
	b.SetBytes(int64(size))
	b.SetParallelism(16)
	b.ReportAllocs()
	exchange(b, l.address, request, size)
}
