package duplex

import (
	"crypto/tls"
	"io"
	"net"
	"syscall"
)

// TLSConn is the server's side of a TLS connection over TCP. Its half-close is TLS's own alert, so that a peer can tell
// an end in order from a connection that broke.
type TLSConn struct {
	*tls.Conn
	tcp *net.TCPConn
}

// ServeTLS begins TLS on a connection. The first read or write does the handshake.
func ServeTLS(tcp *net.TCPConn, config *tls.Config) *TLSConn {
	return &TLSConn{tls.Server(tcp, config), tcp}
}

// SyscallConn is that of the TCP connection: good for looking whether it hangs, not for reading.
func (c *TLSConn) SyscallConn() (syscall.RawConn, error) { return c.tcp.SyscallConn() }

// CloseRead ends what arrives. A read that waits fails.
func (c *TLSConn) CloseRead() error { return c.tcp.CloseRead() }

// moveTo copies until the end, which is in order only if the peer said so. It holds a buffer all the while, since TLS
// does not tell whether it has anything.
func (c *TLSConn) moveTo(dst net.Conn) error {
	buffer := buffers.Get().(*[bufferSize]byte)
	defer release(&buffer)
	for {
		n, err := c.Read(buffer[:])
		if n > 0 {
			if _, err := dst.Write(buffer[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
