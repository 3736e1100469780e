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

// answerer answers each request on a connection with the same bytes, as cheaply as that can be done.
func answerer(conn net.Conn, answer []byte) {
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

func answering(b *testing.B, listener net.Listener, answer string) {
	b.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go answerer(conn, []byte(answer))
		}
	}()
}

// exchange sends the same request again and again, and waits for an answer of so many bytes of body each time.
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

const execAnswer = `{"id":"p-0123456789","returncode":0,"timed_out":false,"truncated":false,"stdout":"hello\n","stderr":"","duration":0.0012}`

// BenchmarkExec is what `POST …/exec` costs: gateway, and as little client and replica as can be.
func BenchmarkExec(b *testing.B) {
	l := started(b, nil)
	listener, err := net.Listen("unix", filepath.Join(l.config.Replicas, "r1.sock"))
	if err != nil {
		b.Fatal(err)
	}
	answering(b, listener, fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\nContent-Type: application/json\r\nX-Request-Id: x\r\n\r\n%s", len(execAnswer), execAnswer))
	l.get("/", nil)
	body := `{"argv":["true"]}`
	b.SetParallelism(16)
	b.ReportAllocs()
	exchange(b, l.address, fmt.Sprintf("POST /v1/sandboxes/sb-1/exec HTTP/1.1\r\nHost: x\r\nAccept: */*\r\nUser-Agent: bench\r\nAuthorization: Bearer %s\r\n"+
		"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", apiToken, len(body), body), len(execAnswer))
}

// BenchmarkTunnel is a GET of 1 KiB through a tunnel, and BenchmarkTunnelDownload one of 8 MiB.
func BenchmarkTunnel(b *testing.B)         { throughTunnel(b, 1<<10) }
func BenchmarkTunnelDownload(b *testing.B) { throughTunnel(b, 8<<20) }

func throughTunnel(b *testing.B, size int) {
	l := newTunnelLab(b, nil)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	answering(b, listener, fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\nContent-Type: text/plain\r\n\r\n%s", size, strings.Repeat("x", size)))
	l.set(func() { l.servers[portInside] = listener.Addr().String() })
	request := "GET " + prefix + "/ HTTP/1.1\r\nHost: x\r\n" + connectHeader + ": " + l.key()[connectHeader] + "\r\n\r\n"
	if a := l.get(prefix+"/", l.key()); a.StatusCode != http.StatusOK {
		b.Fatal(a.Status)
	}
	b.SetBytes(int64(size))
	b.SetParallelism(16)
	b.ReportAllocs()
	exchange(b, l.address, request, size)
}
