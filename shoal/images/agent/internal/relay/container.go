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

// maxParked bounds what an agent may leave here: it needs one, and two for the moment in which it replaces one.
const maxParked = 2

// refusal is how long a doorway rests after it refused somebody.
const refusal = 5 * time.Millisecond

// container is one container's doorway: its listener, the connections its agent has parked, and those that are spliced.
type container struct {
	key      string
	listener *net.UnixListener
	parked   chan *net.UnixConn

	mu      sync.Mutex
	closed  bool
	done    chan struct{}
	spliced map[net.Conn]struct{}

	exposures map[int]*exposure // by the port inside
	guests    map[net.Conn]*guest
	inside    int // guests that were let in
}

// openContainer listens in the container's directory, which the node has made. A socket that an earlier relay left is replaced.
func openContainer(root, key string) (*container, error) {
	path := filepath.Join(root, key, socketName)
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	// The agent may be a mapped root, nobody to the node. Who may park is decided by isAgent, not by this mode.
	if err := os.Chmod(path, 0o666); err != nil {
		listener.Close()
		return nil, err
	}
	c := &container{
		key: key, listener: listener, parked: make(chan *net.UnixConn, maxParked),
		done: make(chan struct{}), spliced: make(map[net.Conn]struct{}),
		exposures: make(map[int]*exposure), guests: make(map[net.Conn]*guest),
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
				time.Sleep(10 * time.Millisecond) // out of descriptors, say: the next may do
				continue
			}
		}
		if err := isAgent(conn); err != nil {
			conn.Close()
			// Code inside may dial for ever: it shall neither fill the node's log nor keep the relay busy.
			if refused++; refused&(refused-1) == 0 {
				log.Printf("relay: %s: refused a connection from inside (%d so far): %v", c.key, refused, err)
			}
			time.Sleep(refusal)
			continue
		}
		c.park(conn)
	}
}

// park keeps a connection for the next client. Where there are too many the oldest, which its agent may have given up, goes.
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

// take returns a connection to the agent, waiting up to patience for one; `unavailable` where none comes.
func (c *container) take(patience time.Duration) (*net.UnixConn, error) {
	select {
	case conn := <-c.parked:
		return conn, nil
	default:
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case conn := <-c.parked:
		return conn, nil
	case <-c.done:
		return nil, fault.New(fault.NotFound, "the container is gone from this node")
	case <-timer.C:
		return nil, fault.New(fault.Unavailable, "the sandbox's agent did not come within %s; try again", patience)
	}
}

// adopt notes spliced connections, so that close can cut them; false where it is too late.
func (c *container) adopt(conns ...net.Conn) bool {
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

func (c *container) release(conns ...net.Conn) {
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

// close cuts the container off: nobody comes in, whoever was in is out. Idempotent.
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
	exposures, guests := c.exposures, c.guests
	c.exposures, c.guests = nil, nil
	c.mu.Unlock()
	for _, e := range exposures {
		e.listener.Close()
	}
	for client := range guests {
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
