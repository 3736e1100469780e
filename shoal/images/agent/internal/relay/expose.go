package relay

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"shoal/agent/internal/duplex"
	"shoal/agent/internal/fault"
)

const (
	maxExposed            = 64    // ports of one container
	maxExposedTotal       = 4_096 // ports of all containers: each answer to `info` lists them
	maxPendingPerPort     = 512   // pending connections to one port
	maxPending            = 4_096 // pending connections to all ports
	maxActivePerContainer = 512   // joined connections to one container; its agent accepts no more either
	maxActive             = 8_192 // joined connections to all containers
	firstPort, lastPort   = 1, 65_535
)

// exposure is a port of this machine that leads to a port in a container.
type exposure struct {
	port     int
	private  bool
	listener *net.TCPListener
	pending  atomic.Int64 // connections that are not yet joined to the container
}

// exposed describes an exposure in the answer to `info`.
type exposed struct {
	Key     string `json:"key"`
	Port    int    `json:"port"`
	Private bool   `json:"private"`
	Address string `json:"address"`
}

func (e *exposure) address() string { return e.listener.Addr().String() }

// expose opens a port of this machine for a port in a container and returns its address. If the port is exposed
// already, it stays as it is, unless `private` changes: then it is closed with all its connections and opened again.
func (r *Relay) expose(cmd command) (string, error) {
	if err := cmd.checkExposure(); err != nil {
		return "", err
	}
	bind := cmd.Bind
	if bind == "" {
		bind = r.listener.Addr().(*net.TCPAddr).IP.String()
	}
	ip := net.ParseIP(bind)
	if ip == nil || ip.IsUnspecified() {
		return "", fault.Invalid("bind",
			"%q is not one address of this machine; the relay never listens on all addresses", bind)
	}
	c := r.find(cmd.Key)
	if c == nil {
		return "", fault.New(fault.NotFound, "the container of %s is not on this node", cmd.Sandbox)
	}
	r.exposeMu.Lock()
	defer r.exposeMu.Unlock()
	listen := cmd.Listen
	if e := c.exposure(cmd.Port); e != nil {
		if e.private == cmd.Private {
			return e.address(), nil
		}
		if listen == 0 {
			listen = e.listener.Addr().(*net.TCPAddr).Port
		}
		c.unexpose(cmd.Port)
	}
	if r.countExposed() >= maxExposedTotal {
		return "", fault.New(fault.QuotaExceeded, "%d ports are exposed on this node: unexpose some", maxExposedTotal)
	}
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: ip, Port: listen})
	if err != nil {
		return "", listenFault(err, bind, listen)
	}
	e := &exposure{port: cmd.Port, private: cmd.Private, listener: listener}
	if err := c.addExposure(e); err != nil {
		listener.Close()
		return "", err
	}
	go r.acceptExposed(c, e)
	return e.address(), nil
}

func (r *Relay) unexpose(key string, port int) {
	r.exposeMu.Lock()
	defer r.exposeMu.Unlock()
	if c := r.find(key); c != nil {
		c.unexpose(port)
	}
}

func (cmd *command) checkExposure() error {
	if cmd.Port < firstPort || cmd.Port > lastPort {
		return fault.Invalid("port", "%d is not a port: %d to %d", cmd.Port, firstPort, lastPort)
	}
	if cmd.Listen < 0 || cmd.Listen > lastPort {
		return fault.Invalid("listen", "%d is not a port: 0 for any, or up to %d", cmd.Listen, lastPort)
	}
	return nil
}

func listenFault(err error, bind string, port int) error {
	address := net.JoinHostPort(bind, strconv.Itoa(port))
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fault.New(fault.AlreadyExists, "listen: %s is taken; choose another port, or 0 for any", address)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fault.Invalid("bind", "%s is not an address of this machine", bind)
	}
	return fmt.Errorf("listening on %s: %w", address, err)
}

func (r *Relay) countExposed() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, c := range r.containers {
		n += c.countExposed()
	}
	return n
}

func (r *Relay) acceptExposed(c *container, e *exposure) {
	for {
		client, err := e.listener.AcceptTCP()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of file descriptors, for example
			continue
		}
		// Clients that are not checked yet are bounded in number and in time.
		if e.pending.Load() >= maxPendingPerPort || r.pending.Load() >= maxPending {
			duplex.Reset(client)
			r.counters.rejected.Add(1)
			continue
		}
		setKeepAlive(client)
		r.counters.connections.Add(1)
		e.pending.Add(1)
		r.pending.Add(1)
		go r.serveExposed(c, e, client)
	}
}

// serveExposed joins one connection to the port in the container, if it is admitted. It closes client.
func (r *Relay) serveExposed(c *container, e *exposure, client *net.TCPConn) {
	agent := r.connectExposed(c, e, client)
	e.pending.Add(-1)
	r.pending.Add(-1)
	if agent == nil {
		r.counters.rejected.Add(1)
		c.removeConn(client)
		duplex.Reset(client) // as if nobody listened on the port
		return
	}
	duplex.Join(client, agent)
	c.untrack(client, agent)
	c.removeConn(client)
	r.active.Add(-1)
}

// connectExposed admits a client of an exposed port and returns the connection to the agent, with r.active incremented.
// It returns nil if the client is not admitted or the port cannot be reached.
func (r *Relay) connectExposed(c *container, e *exposure, client *net.TCPConn) *net.UnixConn {
	if !c.addConn(e, client) {
		return nil
	}
	var early []byte
	if e.private {
		var err error
		if early, err = readToken(client, r.config.secret, c.key, e.port, time.Now()); err != nil {
			return nil
		}
	}
	if !c.activate(client) {
		return nil
	}
	if r.active.Add(1) > maxActive {
		r.active.Add(-1)
		return nil
	}
	agent, fromServer, err := c.dial(e.port)
	if err != nil {
		r.active.Add(-1)
		return nil
	}
	if forward(agent, early) != nil || forward(client, fromServer) != nil || !c.track(client, agent) {
		agent.Close()
		r.active.Add(-1)
		return nil
	}
	return agent
}
