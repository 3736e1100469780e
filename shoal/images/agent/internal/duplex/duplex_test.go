package duplex

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

const patient = 10 * time.Second

// tcp and unix return the two ends of a connection.
func tcp(t *testing.T) (Conn, Conn)  { return pair(t, "tcp", "127.0.0.1:0") }
func unix(t *testing.T) (Conn, Conn) { return pair(t, "unix", filepath.Join(t.TempDir(), "s")) }

func pair(t *testing.T, network, address string) (Conn, Conn) {
	t.Helper()
	listener, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ours, err := net.Dial(network, listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, conn := range []net.Conn{ours, theirs} {
		conn.SetDeadline(time.Now().Add(patient))
		t.Cleanup(func() { conn.Close() })
	}
	return ours.(Conn), theirs.(Conn)
}

// chain connects client ── relay ══ agent ── server, as in production. done is closed once both joins are over.
func chain(t *testing.T) (client, server Conn, done chan struct{}) {
	client, relayOut := tcp(t)
	relayIn, agentOut := unix(t)
	agentIn, server := tcp(t)
	for _, conn := range []Conn{relayOut, relayIn, agentOut, agentIn} {
		conn.SetDeadline(time.Time{})
	}
	relay, agent := make(chan struct{}), make(chan struct{})
	done = make(chan struct{})
	go func() { Join(relayOut, relayIn); close(relay) }()
	go func() { Join(agentOut, agentIn); close(agent) }()
	go func() { <-relay; <-agent; close(done) }()
	return client, server, done
}

func over(t *testing.T, done chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patient):
		t.Fatal("it is not over")
	}
}

func send(t *testing.T, conn Conn, words string) {
	t.Helper()
	if _, err := io.WriteString(conn, words); err != nil {
		t.Fatal(err)
	}
}

func hear(t *testing.T, conn Conn, want string) {
	t.Helper()
	if got, err := io.ReadAll(conn); err != nil || string(got) != want {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestEitherSideMayEndFirst(t *testing.T) {
	for name, swap := range map[string]bool{"client": false, "server": true} {
		t.Run(name, func(t *testing.T) {
			one, other, done := chain(t)
			if swap {
				one, other = other, one
			}
			send(t, one, "question")
			one.CloseWrite()
			hear(t, other, "question")
			send(t, other, "answer")
			other.CloseWrite()
			hear(t, one, "answer")
			over(t, done)
		})
	}
}

func TestALargeAnswerSurvivesThatTheServerHasGone(t *testing.T) {
	client, server, done := chain(t)
	answer := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // more than all buffers on the way
	go func() {
		io.ReadFull(server, make([]byte, 1))
		server.Write(answer)
		server.Close()
	}()
	send(t, client, "?")
	got, err := io.ReadAll(client)
	if err != nil || !bytes.Equal(got, answer) {
		t.Fatalf("%d bytes of %d, %v", len(got), len(answer), err)
	}
	client.Close()
	over(t, done)
}

func TestABreakIsPassedOnAsOne(t *testing.T) {
	for name, swap := range map[string]bool{"client": false, "server": true} {
		t.Run(name, func(t *testing.T) {
			one, other, done := chain(t)
			if swap {
				one, other = other, one
			}
			send(t, one, "half")
			if _, err := io.ReadFull(other, make([]byte, 4)); err != nil {
				t.Fatal(err)
			}
			Reset(one)
			if n, err := other.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Fatalf("%d, %v", n, err)
			}
			over(t, done)
		})
	}
}

func TestWhoIsGoneAfterHisEndIsNoticed(t *testing.T) {
	for name, swap := range map[string]bool{"client": false, "server": true} {
		t.Run(name, func(t *testing.T) {
			one, other, done := chain(t)
			if swap {
				one, other = other, one
			}
			one.CloseWrite()
			hear(t, other, "")
			select {
			case <-done:
				t.Fatal("a half-close ended it")
			case <-time.After(50 * time.Millisecond):
			}
			Reset(one)
			over(t, done)
		})
	}
}

func TestWhoGoesAltogetherIsTakenForBroken(t *testing.T) {
	// The relay was killed: its unix socket closes as a whole.
	relay, agentOut := unix(t)
	agentIn, server := tcp(t)
	agentOut.SetDeadline(time.Time{})
	agentIn.SetDeadline(time.Time{})
	done := make(chan struct{})
	go func() { Join(agentOut, agentIn); close(done) }()
	relay.Close()
	if _, err := server.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("%v", err)
	}
	over(t, done)
}

func TestWhatWaitsIsBounded(t *testing.T) {
	client, server, done := chain(t)
	client.SetWriteDeadline(time.Now().Add(time.Second))
	sent, err := io.CopyN(client, zeros{}, 256<<20) // nobody reads
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%d bytes went to nobody: %v", sent, err)
	}
	got := make(chan int64)
	go func() {
		n, _ := io.Copy(io.Discard, server)
		got <- n
	}()
	client.CloseWrite()
	if n := <-got; n != sent {
		t.Fatalf("%d bytes of %d", n, sent)
	}
	server.Close()
	over(t, done)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
