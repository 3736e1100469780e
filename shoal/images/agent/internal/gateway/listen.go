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
	// A connection costs a descriptor here and often one more to a replica or a relay.
	spareDescriptors = 512
	maxClients       = 16_384
)

// keepAlive finds out within a minute that a client's machine no longer answers.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3}

// clients accepts connections, as many as there are descriptors for; the others wait in the kernel's queue. Closing it leaves the socket itself
// open: others hold it too, and accept what comes from then on.
type clients struct {
	*net.TCPListener
	room   chan struct{}
	open   atomic.Int64
	once   sync.Once
	closed chan struct{}
}

// listenOn takes up the listening socket that the gateway was started with.
func listenOn(file *os.File) (*clients, error) {
	listener, err := net.FileListener(file)
	if err != nil {
		return nil, err
	}
	tcp, ok := listener.(*net.TCPListener)
	if !ok {
		listener.Close()
		return nil, errors.New("it is no listening TCP socket")
	}
	return &clients{TCPListener: tcp, room: make(chan struct{}, roomFor(raiseDescriptors())), closed: make(chan struct{})}, nil
}

// Accept implements net.Listener.
func (c *clients) Accept() (net.Conn, error) {
	select {
	case c.room <- struct{}{}:
	case <-c.closed:
		return nil, net.ErrClosed
	}
	conn, err := c.TCPListener.AcceptTCP()
	if err != nil {
		<-c.room
		return nil, err
	}
	conn.SetKeepAliveConfig(keepAlive)
	c.open.Add(1)
	return &clientConn{TCPConn: conn, clients: c}, nil
}

// Close implements net.Listener.
func (c *clients) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.TCPListener.Close()
}

// clientConn gives its room back when it is closed.
type clientConn struct {
	*net.TCPConn
	clients *clients
	once    sync.Once
}

func (c *clientConn) Close() error {
	c.once.Do(func() {
		c.clients.open.Add(-1)
		<-c.clients.room
	})
	return c.TCPConn.Close()
}

// raiseDescriptors takes all that the machine allows, and returns how many that are.
func raiseDescriptors() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 1024
	}
	before := limit.Cur
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		log.Printf("gateway: raising the limit of descriptors: %v", err)
		limit.Cur = before
	}
	return int(min(limit.Cur, 1<<30))
}

func roomFor(descriptors int) int {
	return min(maxClients, max(64, (descriptors-spareDescriptors)/2))
}
