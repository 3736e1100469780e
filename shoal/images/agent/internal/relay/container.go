package relay

import (
	"fmt"
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

// maxChecking bounds the connections of one container that have not shown the secret yet.
const maxChecking = 4

// container is one container's socket, the connections that its agent has parked, and those that are joined to clients.
type container struct {
	key       string
	directory string
	secret    []byte
	listener  *net.UnixListener
	parked    chan parked
	checking  chan struct{}

	mu      sync.Mutex
	first   process // the container's first process, once the node has told it
	refused int
	closed  bool
	done    chan struct{}
	spliced map[net.Conn]struct{}

	exposures    map[int]*exposure // by the port in the container
	exposedConns map[net.Conn]*exposedConn
	active       int // exposedConns that are joined, or about to be
}

// parked is a connection of somebody who has shown the container's secret.
type parked struct {
	*net.UnixConn
	peer process
}

// openContainer listens in the container's directory, which the node has made. It replaces the socket of an earlier
// relay.
func openContainer(root, key string, secret []byte) (*container, error) {
	directory := filepath.Join(root, key)
	if err := os.Remove(filepath.Join(directory, socketName)); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	listener, err := listenIn(directory)
	if err != nil {
		return nil, err
	}
	c := &container{
		key: key, directory: directory, secret: secret, listener: listener,
		parked: make(chan parked, maxParked), checking: make(chan struct{}, maxChecking),
		done: make(chan struct{}), spliced: make(map[net.Conn]struct{}),
		exposures: make(map[int]*exposure), exposedConns: make(map[net.Conn]*exposedConn),
	}
	go c.accept()
	return c, nil
}

// listenIn binds through a descriptor of the directory: code in the container reads the path that was bound in
// /proc/net/unix, and this one says nothing of the node.
func listenIn(directory string) (*net.UnixListener, error) {
	opened, err := os.Open(directory)
	if err != nil {
		return nil, err
	}
	defer opened.Close()
	bound := fmt.Sprintf("/proc/self/fd/%d/%s", opened.Fd(), socketName)
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: bound, Net: "unix"})
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false) // by then the descriptor may be another directory's
	// With user namespaces the agent is an unprivileged user of the node. No account of the node gets this far, as the
	// directories above are closed; and the secret, not this mode, decides who may park.
	if err := os.Chmod(bound, 0o666); err != nil {
		listener.Close()
		return nil, err
	}
	return listener, nil
}

// identify makes the container's first process the only one that may park. Idempotent.
func (c *container) identify(first process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.first = first
}

// isAgent reports whether the peer may be the agent: it is the container's first process, or the node has not told which
// that is.
func (c *container) isAgent(peer process) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.first.pid == 0 || c.first == peer
}

func (c *container) accept() {
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
		peer, err := peerOf(conn)
		if err == nil && !c.isAgent(peer) {
			err = fmt.Errorf("process %d is not the container's first", peer.pid)
		}
		if err != nil {
			c.refuse(conn, err)
			continue
		}
		c.checking <- struct{}{}
		go func() {
			defer func() { <-c.checking }()
			if err := c.checkSecret(conn); err != nil {
				c.refuse(conn, err)
				return
			}
			c.park(parked{conn, peer})
		}()
	}
}

// refuse closes the connection of somebody who is not the agent. A process in the container may dial again and again: it
// must neither fill the node's log nor keep the relay busy.
func (c *container) refuse(conn *net.UnixConn, reason error) {
	conn.Close()
	c.mu.Lock()
	c.refused++
	refused := c.refused
	c.mu.Unlock()
	if refused&(refused-1) == 0 {
		log.Printf("relay: %s: refused a process that is not the agent (%d so far): %v", c.key, refused, reason)
	}
	time.Sleep(rejectDelay)
}

// park keeps a connection for the next client. If there are too many, it closes the oldest, which the agent may have
// given up. After close it keeps none: the agent would wait for ever in a container that nobody asks for.
func (c *container) park(conn parked) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		conn.Close()
		return
	}
	for {
		select {
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
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		select {
		case conn := <-c.parked:
			if c.isAgent(conn.peer) {
				return conn.UnixConn, nil
			}
			conn.Close() // it parked before the node told which process is the first
		case <-c.done:
			return nil, fault.New(fault.NotFound, "the container is gone from this node")
		case <-timer.C:
			return nil, fault.New(fault.Unavailable, "the sandbox's agent did not connect within %s; try again", timeout)
		}
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
	c.listener.Close()
	os.Remove(filepath.Join(c.directory, socketName))
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
