package relay

import (
	"log"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"shoal/agent/internal/fault"
)

// socketName is what the agent dials, in the directory that is mounted into its container.
const socketName = "relay.sock"

// maxParked bounds an agent's parked connections. It needs one, and two while it replaces one.
const maxParked = 2

// rejectDelay slows down processes in a container that dial the socket without being the agent.
const rejectDelay = 5 * time.Millisecond

// container is one container's socket, the connections that its agent has parked, and those that are joined to clients.
type container struct {
	key      string
	listener *net.UnixListener
	parked   chan *net.UnixConn

	mu      sync.Mutex
	closed  bool
	done    chan struct{}
	spliced map[net.Conn]struct{}

	exposures    map[int]*exposure // by the port in the container
	exposedConns map[net.Conn]*exposedConn
	active       int // exposedConns that are joined, or about to be
}

// openContainer listens in the container's directory, which the node has made. It replaces the socket of an earlier
// relay.
func openContainer(root, key string) (*container, error) {
	path := filepath.Join(root, key, socketName)
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	// With user namespaces the agent is an unprivileged user of the node. checkAgent, not this mode, decides who may
	// park.
	if err := os.Chmod(path, 0o666); err != nil {
		listener.Close()
		return nil, err
	}
	c := &container{
		key: key, listener: listener, parked: make(chan *net.UnixConn, maxParked),
		done: make(chan struct{}), spliced: make(map[net.Conn]struct{}),
		exposures: make(map[int]*exposure), exposedConns: make(map[net.Conn]*exposedConn),
	}
	go c.accept()
	return c, nil
}

func (c *container) accept() {
	refused := 0
	for {
		conn, err := c.listener.AcceptUnix()
		if err != nil {
			select {
			case <-c.done:
				return
			default:
				time.Sleep(10 * time.Millisecond) // out of file descriptors, for example
				continue
			}
		}
		if err := checkAgent(conn); err != nil {
			conn.Close()
			// A process in the container may dial again and again. It must neither fill the node's log nor keep the
			// relay busy.
			if refused++; refused&(refused-1) == 0 {
				log.Printf("relay: %s: refused a process that is not the agent (%d so far): %v", c.key, refused, err)
			}
			time.Sleep(rejectDelay)
			continue
		}
		c.park(conn)
	}
}

// park keeps a connection for the next client. If there are too many, it closes the oldest, which the agent may have
// given up.
func (c *container) park(conn *net.UnixConn) {
	for {
		select {
		case <-c.done:
			conn.Close()
			return
		case c.parked <- conn:
			return
		default:
		}
		select {
		case old := <-c.parked:
			old.Close()
		default:
		}
	}
}

// take returns a parked connection. It waits for one until the timeout, and then returns `unavailable`.
func (c *container) take(timeout time.Duration) (*net.UnixConn, error) {
	select {
	case conn := <-c.parked:
		return conn, nil
	default:
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case conn := <-c.parked:
		return conn, nil
	case <-c.done:
		return nil, fault.New(fault.NotFound, "the container is gone from this node")
	case <-timer.C:
		return nil, fault.New(fault.Unavailable, "the sandbox's agent did not connect within %s; try again", timeout)
	}
}

// track registers joined connections, so that close cuts them. It returns false if the container is closed already.
func (c *container) track(conns ...net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	for _, conn := range conns {
		c.spliced[conn] = struct{}{}
	}
	return true
}

func (c *container) untrack(conns ...net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range conns {
		delete(c.spliced, conn)
	}
}

// connections counts the clients.
func (c *container) connections() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.spliced) / 2
}

// close stops listening and closes all connections. Idempotent.
func (c *container) close() {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.closed = true
	close(c.done)
	spliced := c.spliced
	c.spliced = nil
	exposures, exposedConns := c.exposures, c.exposedConns
	c.exposures, c.exposedConns = nil, nil
	c.mu.Unlock()
	for _, e := range exposures {
		e.listener.Close()
	}
	for client := range exposedConns {
		client.Close()
	}
	c.listener.Close() // removes the socket as well
	for conn := range spliced {
		conn.Close()
	}
	for {
		select {
		case conn := <-c.parked:
			conn.Close()
		default:
			return
		}
	}
}
