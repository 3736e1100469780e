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
	"shoal/agent/internal/token"
)

const (
	maxExposed          = 64    // ports of one container
	maxExposedHere      = 4_096 // ports of all of them: each is in every answer to `info`
	maxPortKnocking     = 512   // connections to one port that are not joined yet
	maxKnocking         = 4_096 // the same of all ports
	maxContainerJoined  = 512   // connections through the exposed ports of one container; its agent takes no more either
	maxJoined           = 8_192 // the same of all containers
	exposedPatience     = 5 * time.Second
	firstPort, lastPort = 1, 65_535
)

// exposure is a port of this machine that leads to a port in a container.
type exposure struct {
	port     int
	private  bool
	listener *net.TCPListener
	knocking atomic.Int64 // connections that are not joined yet
}

// exposed is an exposure as it is told.
type exposed struct {
	Key     string `json:"key"`
	Port    int    `json:"port"`
	Private bool   `json:"private"`
	Address string `json:"address"`
}

func (e *exposure) address() string { return e.listener.Addr().String() }

// expose opens a port of this machine for a port in a container, or finds that it is open. Where it was open with the other privacy, it is
// closed first, with all its connections.
func (r *Relay) expose(o order) (string, error) {
	if err := o.checkExposure(); err != nil {
		return "", err
	}
	bind := o.Bind
	if bind == "" {
		bind = r.listener.Addr().(*net.TCPAddr).IP.String()
	}
	ip := net.ParseIP(bind)
	if ip == nil || ip.IsUnspecified() {
		return "", fault.Invalid("bind", "%q is not one address of this machine; the relay never listens on all", bind)
	}
	box := r.find(o.Key)
	if box == nil {
		return "", fault.New(fault.NotFound, "the container of %s is not on this node", o.Sandbox)
	}
	r.exposing.Lock()
	defer r.exposing.Unlock()
	listen := o.Listen
	if e := box.exposure(o.Port); e != nil {
		if e.private == o.Private {
			return e.address(), nil
		}
		if listen == 0 {
			listen = e.listener.Addr().(*net.TCPAddr).Port
		}
		box.unexpose(o.Port)
	}
	if r.countExposed() >= maxExposedHere {
		return "", fault.New(fault.QuotaExceeded, "%d ports are exposed on this node: take some back", maxExposedHere)
	}
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: ip, Port: listen})
	if err != nil {
		return "", listenFault(err, bind, listen)
	}
	e := &exposure{port: o.Port, private: o.Private, listener: listener}
	if err := box.addExposure(e); err != nil {
		listener.Close()
		return "", err
	}
	go r.acceptExposed(box, e)
	return e.address(), nil
}

func (r *Relay) unexpose(key string, port int) {
	r.exposing.Lock()
	defer r.exposing.Unlock()
	if box := r.find(key); box != nil {
		box.unexpose(port)
	}
}

func (o *order) checkExposure() error {
	if o.Port < firstPort || o.Port > lastPort {
		return fault.Invalid("port", "%d is not a port: %d to %d", o.Port, firstPort, lastPort)
	}
	if o.Listen < 0 || o.Listen > lastPort {
		return fault.Invalid("listen", "%d is not a port: 0 for any, or up to %d", o.Listen, lastPort)
	}
	return nil
}

func listenFault(err error, bind string, port int) error {
	where := net.JoinHostPort(bind, strconv.Itoa(port))
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fault.New(fault.AlreadyExists, "listen: %s is taken; choose another port, or 0 for any", where)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fault.Invalid("bind", "%s is no address of this machine", bind)
	}
	return fmt.Errorf("listening on %s: %w", where, err)
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

func (r *Relay) acceptExposed(box *container, e *exposure) {
	for {
		client, err := e.listener.AcceptTCP()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors, say
			continue
		}
		// Before anything is known of whoever dialled, and whatever he does, he costs little and not for long.
		if e.knocking.Load() >= maxPortKnocking || r.knocking.Load() >= maxKnocking {
			duplex.Reset(client)
			continue
		}
		keepWatch(client)
		e.knocking.Add(1)
		r.knocking.Add(1)
		go r.serveExposed(box, e, client)
	}
}

// serveExposed admits one connection to an exposed port and joins it to the port in the container. It owns client.
func (r *Relay) serveExposed(box *container, e *exposure, client *net.TCPConn) {
	agent := r.open(box, e, client)
	e.knocking.Add(-1)
	r.knocking.Add(-1)
	if agent == nil {
		box.leave(client)
		duplex.Reset(client) // as a machine answers on whose port nobody listens
		return
	}
	duplex.Join(client, agent)
	box.release(client, agent)
	box.leave(client)
	r.joined.Add(-1)
}

// open does all that comes before a connection is joined to the agent's, which it returns; nil where nothing is to come of it. Whoever gets
// one counts it back.
func (r *Relay) open(box *container, e *exposure, client *net.TCPConn) *net.UnixConn {
	if !box.knock(e, client) {
		return nil
	}
	var ahead []byte
	if e.private {
		var err error
		if ahead, err = readPass(client, r.config.secret, box.key, e.port, time.Now()); err != nil {
			return nil
		}
	}
	if !box.enter(client) {
		return nil
	}
	if r.joined.Add(1) > maxJoined {
		r.joined.Add(-1)
		return nil
	}
	agent, fromInside, err := r.dialInside(box, e.port)
	if err != nil {
		r.joined.Add(-1)
		return nil
	}
	if forward(agent, ahead) != nil || forward(client, fromInside) != nil || !box.adopt(client, agent) {
		agent.Close()
		r.joined.Add(-1)
		return nil
	}
	return agent
}

// dialInside has the container's agent dial a port, and returns the connection to it with what the server there has said already.
func (r *Relay) dialInside(box *container, port int) (*net.UnixConn, []byte, error) {
	told := admission{Version: version, Scopes: []string{token.ScopeTunnel}, Dial: port}
	agent, err := r.greet(box, told, exposedPatience)
	if err != nil {
		return nil, nil, err
	}
	ahead, err := awaitDialled(agent)
	if err != nil {
		agent.Close()
		return nil, nil, err
	}
	return agent, ahead, nil
}

// forward writes a little that came too early; it fits into the socket's buffer.
func forward(conn net.Conn, ahead []byte) error {
	if len(ahead) == 0 {
		return nil
	}
	_, err := conn.Write(ahead)
	return err
}
