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
	defaultOrphan  = 600 * time.Second
	firstBackoff   = 10 * time.Millisecond
	longestBackoff = time.Second
	maxConnections = 1024
)

var errOrphaned = errors.New("no relay has been there for too long: this container is forgotten, and ends")

// parker keeps one connection waiting at the relay, for the next client.
type parker struct {
	socket string
	orphan time.Duration
	server *server.Server
}

// park dials and serves until there has been no relay for too long.
func (p *parker) park() error {
	slots := make(chan struct{}, maxConnections)
	backoff := firstBackoff
	last := time.Now() // when a connection was parked last
	for {
		slots <- struct{}{}
		conn, err := dial(p.socket)
		if err != nil {
			<-slots
		} else {
			began, ended := make(chan struct{}), make(chan struct{})
			go func() {
				p.serve(conn, func() { close(began) })
				close(ended)
				<-slots
			}()
			parked := time.Now()
			if used(began, ended) {
				backoff, last = firstBackoff, time.Now()
				continue
			}
			if time.Since(parked) > longestBackoff { // or else the relay turned us away
				backoff, last = firstBackoff, time.Now()
			}
		}
		if time.Since(last) > p.orphan {
			return errOrphaned
		}
		time.Sleep(min(backoff, p.orphan))
		backoff = min(2*backoff, longestBackoff)
	}
}

// used waits until a client takes the connection (true), or it ends without.
func used(began, ended <-chan struct{}) bool {
	select {
	case <-began:
		return true
	case <-ended:
	}
	select {
	case <-began: // and was over before we looked
		return true
	default:
		return false
	}
}

func (p *parker) serve(conn *os.File, began func()) {
	defer func() {
		if reason := recover(); reason != nil {
			log.Printf("shoal: a connection failed by a defect: %v\n%s", reason, debug.Stack())
			conn.Close()
		}
	}()
	p.server.Serve(conn, began)
}

// dial connects to a unix socket. It does so by hand because package net would cost the agent memory that it needs for nothing else.
func dial(path string) (*os.File, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		syscall.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "relay"), nil
}
