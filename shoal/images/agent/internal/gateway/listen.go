package gateway

import (
	"errors"
	"log"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// Each client connection uses one descriptor here, and often one more to a replica or a relay.
	reservedDescriptors = 512
	maxClients          = 16_384
)

// keepAlive detects within a minute that a client's machine no longer answers.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3}

// clients accepts as many connections as there are file descriptors for. Further ones wait in the kernel's queue. Close
// does not shut the socket down: other processes hold it too, and go on accepting.
type clients struct {
	*net.TCPListener
	slots  chan struct{} // one element for each open connection
	open   atomic.Int64
	once   sync.Once
	closed chan struct{}
}

// newClientListener uses the listening socket that the gateway was started with.
func newClientListener(file *os.File) (*clients, error) {
	listener, err := net.FileListener(file)
	if err != nil {
		return nil, err
	}
	tcp, ok := listener.(*net.TCPListener)
	if !ok {
		listener.Close()
		return nil, errors.New("not a listening TCP socket")
	}
	limit := connectionLimit(raiseFileLimit())
	return &clients{TCPListener: tcp, slots: make(chan struct{}, limit), closed: make(chan struct{})}, nil
}

// Accept implements net.Listener.
func (c *clients) Accept() (net.Conn, error) {
	select {
	case c.slots <- struct{}{}:
	case <-c.closed:
		return nil, net.ErrClosed
	}
	conn, err := c.TCPListener.AcceptTCP()
	if err != nil {
		<-c.slots
		return nil, err
	}
	conn.SetKeepAliveConfig(keepAlive)
	c.open.Add(1)
	return &countedConn{TCPConn: conn, clients: c}, nil
}

// Close implements net.Listener.
func (c *clients) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.TCPListener.Close()
}

// countedConn frees its slot when it is closed.
type countedConn struct {
	*net.TCPConn
	clients *clients
	once    sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() {
		c.clients.open.Add(-1)
		<-c.clients.slots
	})
	return c.TCPConn.Close()
}

// raiseFileLimit raises the limit of file descriptors to the hard limit, and returns the new limit.
func raiseFileLimit() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 1024
	}
	before := limit.Cur
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		log.Printf("gateway: raising the limit of file descriptors: %v", err)
		limit.Cur = before
	}
	return int(min(limit.Cur, 1<<30))
}

func connectionLimit(descriptors int) int {
	return min(maxClients, max(64, (descriptors-reservedDescriptors)/2))
}
