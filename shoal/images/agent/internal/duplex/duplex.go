// Package duplex joins two stream sockets: it copies bytes both ways, and passes the end of each direction on as a
// half-close.
package duplex

import (
	"net"
	"sync/atomic"
	"syscall"
	"time"
)

// Conn is a *net.TCPConn, a *net.UnixConn or a *TLSConn.
type Conn interface {
	net.Conn
	syscall.Conn
	CloseWrite() error
}

// past is a deadline that wakes every reader and writer of a connection.
var past = time.Unix(1, 0)

// direction is one of the two directions, from src to dst.
type direction struct {
	src, dst Conn
	ended    atomic.Bool // src has ended in order; dst gets the half-close now or has it already
}

// Join copies both ways until both directions have ended, until one breaks, or until a side that has ended its own
// direction closes its connection. Then it closes both connections. If a direction broke, its receiver gets a reset, so
// that it does not take the break for an end.
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
		<-done // the last bytes of the side that closed may still be on their way
	default:
		cut(a, b)
		<-done
	}
	there.close()
	back.close()
}

// pump copies until the source ends, and passes the end on.
func (d *direction) pump(other *direction) {
	if err := Move(d.dst, d.src); err != nil {
		return
	}
	// A side that closes its whole connection before the other side's end has broken the connection. The unix socket
	// between relay and agent has no other way to signal a break.
	if hung(d.src) && !other.ended.Load() {
		return
	}
	d.ended.Store(true) // set first, because the other side may hang up as soon as it sees the half-close
	d.dst.CloseWrite()
}

// waitForOther waits until the other direction is over too. If its receiver closes the connection, it breaks that
// direction.
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

// close closes the receiving connection, with a reset unless the direction has ended in order.
func (d *direction) close() {
	if d.ended.Load() {
		d.dst.Close()
	} else {
		Reset(d.dst)
	}
}

// Reset closes a connection so that its peer gets an error and not an end of stream, if the kind of socket allows that.
func Reset(conn net.Conn) {
	if secure, ok := conn.(*TLSConn); ok {
		conn = secure.tcp // without the alert, which says that the end is in order
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	conn.Close()
}

func cut(a, b Conn) {
	a.SetDeadline(past)
	b.SetDeadline(past)
}
