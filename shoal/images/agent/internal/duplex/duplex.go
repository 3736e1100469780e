// Package duplex joins two stream sockets into one: bytes go both ways, and the end of each direction is passed on as a half-close.
package duplex

import (
	"net"
	"sync/atomic"
	"syscall"
	"time"
)

// Conn is a *net.TCPConn or a *net.UnixConn.
type Conn interface {
	net.Conn
	syscall.Conn
	CloseWrite() error
}

// past is a deadline that wakes whoever waits on a connection.
var past = time.Unix(1, 0)

// direction is the bytes from src to dst.
type direction struct {
	src, dst Conn
	ended    atomic.Bool // in order, and about to be passed on, if it was not already
}

// Join copies both ways until both directions have ended, one is broken, or a side that had ended its own is gone altogether. It closes
// both connections; a side to which a direction was broken off is reset, so that it does not take the break for an end.
func Join(a, b Conn) {
	there, back := &direction{src: a, dst: b}, &direction{src: b, dst: a}
	done := make(chan *direction, 2)
	go func() { there.pump(back); done <- there }()
	go func() { back.pump(there); done <- back }()
	first := <-done
	switch {
	case first.ended.Load():
		first.waitForOther(done)
	case hung(first.dst) && !hung(first.src):
		<-done // what the side that went had said before may still be on its way
	default:
		cut(a, b)
		<-done
	}
	there.close()
	back.close()
}

// pump copies until the source's end, and passes that on.
func (d *direction) pump(other *direction) {
	if err := move(d.dst, d.src); err != nil {
		return
	}
	// Whoever closes as a whole before he has heard the other side's end has broken off: the two unix sockets between
	// relay and agent have no other way to say so.
	if hung(d.src) && !other.ended.Load() {
		return
	}
	d.ended.Store(true) // before the other side hears of it and may hang up
	d.dst.CloseWrite()
}

// waitForOther returns once the other direction is over too. It is cut short where nobody is left to take what it brings.
func (d *direction) waitForOther(done <-chan *direction) {
	gone := make(chan struct{})
	go func() {
		waitHung(d.src)
		close(gone)
	}()
	select {
	case <-done:
		d.src.SetReadDeadline(past)
		<-gone
	case <-gone:
		cut(d.src, d.dst)
		<-done
	}
}

// close closes the connection that the direction leads to.
func (d *direction) close() {
	if d.ended.Load() {
		d.dst.Close()
	} else {
		Reset(d.dst)
	}
}

// Reset closes a connection so that its peer gets an error in place of an end, as far as its kind allows.
func Reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	conn.Close()
}

func cut(a, b Conn) {
	a.SetDeadline(past)
	b.SetDeadline(past)
}
