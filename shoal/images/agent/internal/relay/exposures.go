package relay

import (
	"net"

	"shoal/agent/internal/fault"
)

// exposedConn is a connection to an exposed port.
type exposedConn struct {
	exposure *exposure
	active   bool // counted in container.active
}

// The methods of container below manage its exposed ports. Each takes the container's lock.

func (c *container) exposure(port int) *exposure {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.exposures[port]
}

func (c *container) addExposure(e *exposure) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return fault.New(fault.NotFound, "the container is gone from this node")
	}
	if len(c.exposures) >= maxExposed {
		return fault.New(fault.QuotaExceeded, "%d ports of the sandbox are exposed: unexpose some", maxExposed)
	}
	c.exposures[e.port] = e
	return nil
}

// unexpose closes an exposed port and its connections. Idempotent.
func (c *container) unexpose(port int) {
	c.mu.Lock()
	e := c.exposures[port]
	delete(c.exposures, port)
	var clients []net.Conn
	for client, conn := range c.exposedConns {
		if conn.exposure == e {
			clients = append(clients, client)
		}
	}
	c.mu.Unlock()
	if e == nil {
		return
	}
	e.listener.Close()
	for _, client := range clients {
		client.Close()
	}
}

// addConn registers a connection to an exposed port, so that unexpose closes it. It returns false if the port is closed
// already.
func (c *container) addConn(e *exposure, client net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.exposures[e.port] != e {
		return false
	}
	c.exposedConns[client] = &exposedConn{exposure: e}
	return true
}

// activate counts an admitted connection. It returns false if the container has too many, or if the port was closed.
func (c *container) activate(client net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	conn := c.exposedConns[client]
	if conn == nil || c.active >= maxActivePerContainer {
		return false
	}
	conn.active = true
	c.active++
	return true
}

// removeConn unregisters a connection. Idempotent.
func (c *container) removeConn(client net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if conn := c.exposedConns[client]; conn != nil && conn.active {
		c.active--
	}
	delete(c.exposedConns, client)
}

func (c *container) countExposed() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.exposures)
}

// exposed lists the exposed ports.
func (c *container) exposed() []exposed {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]exposed, 0, len(c.exposures))
	for _, e := range c.exposures {
		all = append(all, exposed{Key: c.key, Port: e.port, Private: e.private, Address: e.address()})
	}
	return all
}
