package e2e

import (
	"io"
	"net"
	"testing"
)

const bulk = 100 << 20

// BenchmarkTunnelIn and BenchmarkTunnelOut carry 100 MiB through relay and agent; BenchmarkLoopback does without them.
func BenchmarkTunnelIn(b *testing.B) {
	n := start(b)
	port := inside(b, "127.0.0.1:0", swallow)
	benchmarkBulk(b, func() stream { return n.joined(port, "") }, upload)
}

func BenchmarkTunnelOut(b *testing.B) {
	n := start(b)
	port := inside(b, "127.0.0.1:0", pour)
	benchmarkBulk(b, func() stream { return n.joined(port, "") }, drain)
}

// BenchmarkTunnelInTLS and BenchmarkTunnelOutTLS do so over TLS.
func BenchmarkTunnelInTLS(b *testing.B) {
	n := startTLS(b)
	port := inside(b, "127.0.0.1:0", swallow)
	benchmarkBulk(b, func() stream { return n.joined(port, "") }, upload)
}

func BenchmarkTunnelOutTLS(b *testing.B) {
	n := startTLS(b)
	port := inside(b, "127.0.0.1:0", pour)
	benchmarkBulk(b, func() stream { return n.joined(port, "") }, drain)
}

func BenchmarkTunnelOpenTLS(b *testing.B) {
	n := startTLS(b)
	port := inside(b, "127.0.0.1:0", func(conn *net.TCPConn) {})
	for b.Loop() {
		conn := n.joined(port, "")
		conn.Close()
	}
}

func BenchmarkLoopback(b *testing.B) {
	port := inside(b, "127.0.0.1:0", swallow)
	benchmarkBulk(b, func() stream {
		conn, err := net.DialTCP("tcp", nil, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
		if err != nil {
			b.Fatal(err)
		}
		return conn
	}, upload)
}

func BenchmarkTunnelOpen(b *testing.B) {
	n := start(b)
	port := inside(b, "127.0.0.1:0", func(conn *net.TCPConn) {})
	for b.Loop() {
		conn := n.joined(port, "")
		conn.Close()
	}
}

func benchmarkBulk(b *testing.B, open func() stream, move func(conn stream)) {
	b.SetBytes(bulk)
	for b.Loop() {
		conn := open()
		move(conn)
		conn.Close()
	}
}

var chunk = make([]byte, 256<<10)

// pour sends and ends, upload waits as well until the other side has heard it all.
func pour(conn *net.TCPConn) { send(conn) }

func send(conn stream) {
	for range bulk / len(chunk) {
		if _, err := conn.Write(chunk); err != nil {
			return
		}
	}
	conn.CloseWrite()
}

func upload(conn stream) {
	send(conn)
	conn.Read(make([]byte, 1))
}

func swallow(conn *net.TCPConn) { drain(conn) }

func drain(conn stream) {
	buffer := make([]byte, 256<<10)
	for {
		if _, err := conn.Read(buffer); err != nil {
			if err != io.EOF {
				panic(err)
			}
			return
		}
	}
}
