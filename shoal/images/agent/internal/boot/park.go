package boot

import (
	"errors"
	"log"
	"os"
	"runtime/debug"
	"syscall"
	"time"

	"shoal/agent/internal/server"
)

const (
	defaultSocket  = "/.shoal/run/relay.sock"
	secretName     = "secret" // beside the socket
	secretSize     = 32
	defaultOrphan  = 600 * time.Second
	firstBackoff   = 10 * time.Millisecond
	longestBackoff = time.Second
	maxConnections = 1024
)

var errOrphaned = errors.New("no relay has answered for too long: this container is orphaned and ends")

// parker keeps one connection waiting at the relay for the next client.
type parker struct {
	socket string
	secret []byte // what the relay demands first
	// restorable: memory snapshots may be taken of this container, and it may have been restored from one.
	restorable bool
	restored   func() // called when it was
	unreached  func() // called when nobody could reach this container for a while
	conns      connections
	orphan     time.Duration
	server     *server.Server
}

// park dials and serves until no relay has answered for the orphan time.
func (p *parker) park() error {
	if p.restorable {
		go p.conns.closeSevered(snapshotFile)
	}
	slots := make(chan struct{}, maxConnections)
	backoff := firstBackoff
	last := time.Now() // when a connection last waited at the relay
	for {
		slots <- struct{}{}
		if p.restorable {
			p.refreshSecret()
		}
		conn, err := dial(p.socket, p.secret)
		if err != nil {
			<-slots
		} else {
			if p.restorable {
				p.conns.add(conn)
			}
			began, ended := make(chan struct{}), make(chan struct{})
			go func() {
				p.serve(conn, func() { close(began) })
				p.conns.remove(conn)
				close(ended)
				<-slots
			}()
			parked := time.Now()
			if used(began, ended) {
				backoff, last = firstBackoff, time.Now()
				continue
			}
			if time.Since(parked) > longestBackoff { // a shorter wait means that the relay refused the connection
				backoff, last = firstBackoff, time.Now()
				p.unreached() // the relay was restarted, or cut this container off while it was paused
			}
		}
		if time.Since(last) > p.orphan {
			return errOrphaned
		}
		time.Sleep(min(backoff, p.orphan))
		backoff = min(2*backoff, longestBackoff)
	}
}

// used waits until a client takes the connection, or until it ends without one. It reports whether a client took it.
func used(began, ended <-chan struct{}) bool {
	select {
	case <-began:
		return true
	case <-ended:
	}
	select {
	case <-began: // the client came and left before the first select ran
		return true
	default:
		return false
	}
}

func (p *parker) serve(conn *os.File, began func()) {
	defer func() {
		if reason := recover(); reason != nil {
			log.Printf("shoal: bug in the agent: a connection panicked: %v\n%s", reason, debug.Stack())
			conn.Close()
		}
	}()
	p.server.Serve(conn, began)
}

// dial connects to a unix socket and sends the secret. It makes the system calls itself: package net would cost memory,
// and the agent needs it for nothing else here.
func dial(path string, secret []byte) (*os.File, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		syscall.Close(fd)
		return nil, err
	}
	if _, err := syscall.Write(fd, secret); err != nil { // it fits into the buffer of a new socket
		syscall.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "relay"), nil
}
