package relay

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"time"

	"shoal/agent/internal/duplex"
	"shoal/agent/internal/fault"
	"shoal/agent/internal/frame"
	"shoal/agent/internal/token"
)

const (
	helloTimeout = 5 * time.Second
	maxWait      = 60 * time.Second
	minWait      = time.Second // for an agent to park its next connection, or to reconnect to a new relay
	version      = 1
)

// hello is the payload of a client's HELLO.
type hello struct {
	Version int    `json:"v"`
	Token   string `json:"token"`
	WaitMs  int64  `json:"wait_ms"`
	Dial    int    `json:"dial"` // if not 0, the client wants a raw connection to this port in the sandbox
}

// welcome is the payload of the relay's HELLO to a client, and of the agent's.
type welcome struct {
	Version int          `json:"v"`
	OK      bool         `json:"ok,omitempty"`
	Error   *fault.Fault `json:"error,omitempty"`
}

// admission is the payload of the relay's HELLO to an agent: what the client may do.
type admission struct {
	Version int      `json:"v"`
	Scopes  []string `json:"scopes"`
	Dial    int      `json:"dial,omitempty"`
}

// parseHello parses and checks the payload of a client's HELLO.
func parseHello(payload []byte) (hello, error) {
	var h hello
	if err := json.Unmarshal(payload, &h); err != nil {
		return h, fault.Invalid("hello", "the payload is not the JSON object of a HELLO")
	}
	if h.Version != version {
		return h, fault.Invalid("v", "version %d is not supported, only %d", h.Version, version)
	}
	if h.WaitMs < 0 || h.WaitMs > maxWait.Milliseconds() {
		return h, fault.Invalid("wait_ms", "%d is out of range: at most %d", h.WaitMs, maxWait.Milliseconds())
	}
	if h.Dial < 0 || h.Dial > 65535 {
		return h, fault.Invalid("dial", "%d is not a port: 1 to 65535", h.Dial)
	}
	return h, nil
}

// newAdmission returns an error if the claims do not allow the connection. A raw connection has no other scope than
// `tunnel`, so that an agent that is too old to know raw connections does not take it for one that carries requests.
func newAdmission(claims *token.Claims, dial int) (admission, error) {
	if dial == 0 {
		return admission{Version: version, Scopes: claims.Scopes}, claims.CheckRequests()
	}
	return admission{Version: version, Scopes: []string{token.ScopeTunnel}, Dial: dial}, claims.CheckDial(dial)
}

// clientConn is a client's connection: TCP, or TLS over it.
type clientConn interface {
	duplex.Conn
	CloseRead() error
}

// session is a client's connection to its container's agent.
type session struct {
	agent     *net.UnixConn
	early     []byte // what the client sent right after its HELLO
	container *container
	raw       bool // a raw connection to a port
}

// serve admits one client and copies both ways until both sides are done. It closes client.
func (r *Relay) serve(client clientConn) {
	defer client.Close()
	s, err := r.admit(client)
	if err != nil {
		r.counters.rejected.Add(1)
		var f *fault.Fault
		if errors.As(err, &f) {
			client.SetWriteDeadline(time.Now().Add(helloTimeout))
			client.Write(helloFrame(welcome{Version: version, Error: f}))
		}
		return
	}
	defer s.agent.Close()
	if !s.container.track(client, s.agent) {
		return
	}
	defer s.container.untrack(client, s.agent)
	if forward(s.agent, s.early) != nil {
		return
	}
	if _, err := client.Write(helloFrame(welcome{Version: version, OK: true})); err != nil {
		return
	}
	if s.raw {
		duplex.Join(client, s.agent)
	} else {
		splice(client, s.agent)
	}
}

// admit reads and checks the client's HELLO, and connects the client to the agent.
func (r *Relay) admit(client clientConn) (*session, error) {
	client.SetReadDeadline(time.Now().Add(helloTimeout))
	decoder := frame.NewDecoder(client)
	f, err := decoder.Next()
	r.awaitingHello.Add(-1)
	if err != nil {
		return nil, err
	}
	if f.Kind != frame.Hello {
		return nil, fault.Invalid("hello", "the first frame must be a HELLO")
	}
	h, err := parseHello(f.Payload)
	if err != nil {
		return nil, err
	}
	claims, err := token.Check(r.config.secret, h.Token, time.Now())
	if err != nil {
		return nil, err
	}
	adm, err := newAdmission(&claims, h.Dial)
	if err != nil {
		return nil, err
	}
	c := r.find(claims.Key)
	if c == nil {
		return nil, fault.New(fault.NotFound, "the container of %s is not on this node", claims.Sandbox)
	}
	client.SetReadDeadline(time.Time{})
	agent, err := c.connect(adm, max(minWait, time.Duration(h.WaitMs)*time.Millisecond))
	if err != nil {
		return nil, err
	}
	return &session{agent: agent, early: decoder.Buffered(), container: c, raw: h.Dial != 0}, nil
}

func helloFrame(v any) []byte {
	payload, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	return frame.Append(make([]byte, 0, len(payload)+frame.HeaderSize), frame.Hello, 0, payload)
}

// splice copies both ways until both ends are done; without TLS the kernel moves the bytes. The end of one direction is passed on
// as a half-close.
func splice(client clientConn, agent *net.UnixConn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := copyAll(agent, client); err != nil {
			agent.Close() // not CloseWrite: the agent must see that the connection broke
			return
		}
		agent.CloseWrite()
	}()
	if err := copyAll(client, agent); err != nil {
		client.Close()
	} else {
		client.CloseWrite()
	}
	// The agent closes only whole connections, so nobody reads what the client still sends.
	client.CloseRead()
	<-done
}

// copyAll copies until the end of src. The kernel does it where it can; with TLS, what waits holds no buffer to fill.
func copyAll(dst, src duplex.Conn) error {
	if _, secure := dst.(*duplex.TLSConn); secure {
		return duplex.Move(dst, src)
	}
	_, err := io.Copy(dst, src)
	return err
}
