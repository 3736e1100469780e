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
	helloPatience = 5 * time.Second
	longestWait   = 60 * time.Second
	shortestWait  = time.Second // in which an agent parks the next connection, or comes back after a restart of the relay
	version       = 1
)

// hello is what a client says first.
type hello struct {
	Version int    `json:"v"`
	Token   string `json:"token"`
	WaitMs  int64  `json:"wait_ms"`
	Dial    int    `json:"dial"` // not 0: a raw connection to that port in the sandbox
}

// welcome is what the relay answers, and errorReply what it answers those it does not admit.
type welcome struct {
	Version int          `json:"v"`
	OK      bool         `json:"ok,omitempty"`
	Error   *fault.Fault `json:"error,omitempty"`
}

// admission is what the relay tells the agent of a client.
type admission struct {
	Version int      `json:"v"`
	Scopes  []string `json:"scopes"`
	Dial    int      `json:"dial,omitempty"`
}

// parseHello reads a HELLO's payload.
func parseHello(payload []byte) (hello, error) {
	var h hello
	if err := json.Unmarshal(payload, &h); err != nil {
		return h, fault.Invalid("hello", "it is not the JSON of a HELLO")
	}
	if h.Version != version {
		return h, fault.Invalid("v", "version %d is not spoken here, only %d", h.Version, version)
	}
	if h.WaitMs < 0 || time.Duration(h.WaitMs)*time.Millisecond > longestWait {
		return h, fault.Invalid("wait_ms", "%d is out of range: at most %d", h.WaitMs, longestWait.Milliseconds())
	}
	if h.Dial < 0 || h.Dial > 65535 {
		return h, fault.Invalid("dial", "%d is not a port: 1 to 65535", h.Dial)
	}
	return h, nil
}

// admissionOf is what the agent is told; an error where the claims do not allow it. A raw connection is for nothing but that, even
// at an agent too old to know them.
func admissionOf(claims *token.Claims, dial int) (admission, error) {
	if dial == 0 {
		return admission{Version: version, Scopes: claims.Scopes}, claims.MaySpeak()
	}
	return admission{Version: version, Scopes: []string{token.ScopeTunnel}, Dial: dial}, claims.MayDial(dial)
}

// serve admits one client and splices it until either side is done. It owns client.
func (r *Relay) serve(client *net.TCPConn) {
	defer client.Close()
	agent, ahead, box, dialled, err := r.admit(client)
	if err != nil {
		var f *fault.Fault
		if errors.As(err, &f) {
			client.SetWriteDeadline(time.Now().Add(helloPatience))
			client.Write(helloFrame(welcome{Version: version, Error: f}))
		}
		return
	}
	defer agent.Close()
	if !box.adopt(client, agent) {
		return
	}
	defer box.release(client, agent)
	// What the client sent right behind its HELLO was read with it and goes first.
	if len(ahead) > 0 {
		if _, err := agent.Write(ahead); err != nil {
			return
		}
	}
	if _, err := client.Write(helloFrame(welcome{Version: version, OK: true})); err != nil {
		return
	}
	if dialled {
		duplex.Join(client, agent)
	} else {
		splice(client, agent)
	}
}

// admit reads the HELLO, checks it, and returns the agent's connection, told of the client, with what was read ahead, and whether it is a raw one.
func (r *Relay) admit(client *net.TCPConn) (agent *net.UnixConn, ahead []byte, box *container, dialled bool, err error) {
	client.SetReadDeadline(time.Now().Add(helloPatience))
	decoder := frame.NewDecoder(client)
	f, err := decoder.Next()
	r.greeted()
	if err != nil {
		return nil, nil, nil, false, err
	}
	if f.Kind != frame.Hello {
		return nil, nil, nil, false, fault.Invalid("hello", "the first frame must be a HELLO")
	}
	h, err := parseHello(f.Payload)
	if err != nil {
		return nil, nil, nil, false, err
	}
	claims, err := token.Check(r.config.secret, h.Token, time.Now())
	if err != nil {
		return nil, nil, nil, false, err
	}
	told, err := admissionOf(&claims, h.Dial)
	if err != nil {
		return nil, nil, nil, false, err
	}
	box = r.find(claims.Key)
	if box == nil {
		return nil, nil, nil, false, fault.New(fault.NotFound, "the container of %s is not on this node", claims.Sandbox)
	}
	client.SetReadDeadline(time.Time{})
	agent, err = r.greet(box, told, max(shortestWait, time.Duration(h.WaitMs)*time.Millisecond))
	if err != nil {
		return nil, nil, nil, false, err
	}
	return agent, decoder.Buffered(), box, h.Dial != 0, nil
}

// greet takes a parked connection and tells its agent what the client may do. One that broke while it was parked is passed over.
func (r *Relay) greet(box *container, told admission, patience time.Duration) (*net.UnixConn, error) {
	deadline := time.Now().Add(patience)
	for {
		agent, err := box.take(time.Until(deadline))
		if err != nil {
			return nil, err
		}
		if _, err := agent.Write(helloFrame(told)); err == nil {
			return agent, nil
		}
		agent.Close()
	}
}

func helloFrame(v any) []byte {
	payload, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	return frame.Append(make([]byte, 0, len(payload)+frame.HeaderSize), frame.Hello, 0, payload)
}

// splice copies both ways until both are at their end; the kernel moves the bytes. An end is passed on as a half-close.
func splice(client *net.TCPConn, agent *net.UnixConn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := io.Copy(agent, client); err != nil {
			agent.Close() // broken, not ended: the agent must not take it for an end
			return
		}
		agent.CloseWrite()
	}()
	if _, err := io.Copy(client, agent); err != nil {
		client.Close()
	} else {
		client.CloseWrite()
	}
	// The agent ends a connection only as a whole, so nothing the client may still say has a reader.
	client.CloseRead()
	<-done
}
