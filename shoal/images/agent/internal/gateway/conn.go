package gateway

import (
	"net"
	"time"
)

// bufferedConn is a connection from which some data was read ahead. Each write renews its deadline.
type bufferedConn struct {
	net.Conn
	buffered []byte        // read ahead
	timeout  time.Duration // for the peer to read something
	renewed  time.Time
}

func (c *bufferedConn) Read(p []byte) (int, error) {
	if len(c.buffered) > 0 {
		n := copy(p, c.buffered)
		c.buffered = c.buffered[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

func (c *bufferedConn) Write(p []byte) (int, error) {
	if now := time.Now(); renewalDue(c.renewed, now) {
		c.renewed = now
		c.Conn.SetWriteDeadline(now.Add(c.timeout))
	}
	return c.Conn.Write(p)
}

// CloseWrite ends one direction. A connection that cannot be half-closed is closed.
func (c *bufferedConn) CloseWrite() error {
	if closer, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return closer.CloseWrite()
	}
	return c.Conn.Close()
}
