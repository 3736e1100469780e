package relay

import (
	"net"

	"shoal/agent/internal/fault"
)

// guest is a connection to an exposed port.
type guest struct {
	through *exposure
	inside  bool // it counts: it was let in
}

// What a container knows of its exposed ports. All of it is under the container's lock.

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
		return fault.New(fault.QuotaExceeded, "%d ports of the sandbox are exposed: take some back", maxExposed)
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
	for client, g := range c.guests {
		if g.through == e {
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

// knock notes a connection to an exposed port, so that it is closed with it; false where that has been closed.
func (c *container) knock(e *exposure, client net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.exposures[e.port] != e {
		return false
	}
	c.guests[client] = &guest{through: e}
	return true
}

// enter lets a connection in that may; false where there are too many.
func (c *container) enter(client net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := c.guests[client]
	if g == nil || c.inside >= maxContainerJoined {
		return false
	}
	g.inside = true
	c.inside++
	return true
}

// leave forgets a connection. Idempotent.
func (c *container) leave(client net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if g := c.guests[client]; g != nil && g.inside {
		c.inside--
	}
	delete(c.guests, client)
}

func (c *container) countExposed() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.exposures)
}

// exposed lists them.
func (c *container) exposed() []exposed {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]exposed, 0, len(c.exposures))
	for _, e := range c.exposures {
		all = append(all, exposed{Key: c.key, Port: e.port, Private: e.private, Address: e.address()})
	}
	return all
}
