package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/frame"
)

const (
	agentWait     = 5 * time.Second  // how long the relay waits for the sandbox's agent
	dialPatience  = 5 * time.Second  // for the connection to the relay
	helloPatience = 12 * time.Second // for both HELLOs: the agent tries the port for 5 s

	// serverPatience is how long a server in a sandbox may take nothing of a request, or think before its answer begins.
	serverPatience = 300 * time.Second
)

// agentError is what the sandbox's agent says of a port. Anything else is of the way there.
type agentError struct{ fault *fault.Fault }

func (e *agentError) Error() string { return e.fault.Message }

// dialSandbox connects to a port in a sandbox by way of its node's relay (PROTOCOL.md, "Raw connections").
func dialSandbox(ctx context.Context, relay, grant string, port int) (*sandboxConn, error) {
	dialer := net.Dialer{Timeout: dialPatience}
	conn, err := dialer.DialContext(ctx, "tcp", relay)
	if err != nil {
		return nil, err
	}
	ahead, err := greet(ctx, conn, grant, port)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &sandboxConn{Conn: conn, ahead: ahead}, nil
}

// greet says HELLO and reads those of the relay and of the agent. It returns what the server said right behind them.
func greet(ctx context.Context, conn net.Conn, grant string, port int) ([]byte, error) {
	deadline := time.Now().Add(helloPatience)
	if limit, found := ctx.Deadline(); found {
		deadline = earlier(deadline, limit)
	}
	conn.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	hello, err := json.Marshal(map[string]any{"v": 1, "token": grant, "wait_ms": agentWait.Milliseconds(), "dial": port})
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(frame.Append(nil, frame.Hello, 0, hello)); err != nil {
		return nil, err
	}
	decoder := frame.NewDecoder(conn)
	if err := readHello(decoder); err != nil {
		return nil, err
	}
	if err := readHello(decoder); err != nil {
		var said *fault.Fault
		if errors.As(err, &said) {
			err = &agentError{said}
		}
		return nil, err
	}
	if !stop() {
		return nil, ctx.Err()
	}
	conn.SetDeadline(time.Time{})
	return append([]byte(nil), decoder.Buffered()...), nil
}

// readHello returns the fault that a HELLO tells, nil where it welcomes.
func readHello(decoder *frame.Decoder) error {
	f, err := decoder.Next()
	if err != nil {
		return err
	}
	var hello struct {
		OK    bool         `json:"ok"`
		Error *fault.Fault `json:"error"`
	}
	switch {
	case f.Kind != frame.Hello || json.Unmarshal(f.Payload, &hello) != nil:
		return fmt.Errorf("the relay does not speak the protocol: %w", frame.ErrMalformed)
	case hello.Error != nil:
		return hello.Error
	case !hello.OK:
		return fmt.Errorf("the relay does not speak the protocol: %w", frame.ErrMalformed)
	}
	return nil
}

// sandboxConn is a connection to a server in a sandbox, which may be slow to take what it is told.
type sandboxConn struct {
	net.Conn
	ahead   []byte // what came behind the HELLOs
	renewed time.Time
}

func (c *sandboxConn) Read(p []byte) (int, error) {
	if len(c.ahead) > 0 {
		n := copy(p, c.ahead)
		c.ahead = c.ahead[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

func (c *sandboxConn) Write(p []byte) (int, error) {
	if now := time.Now(); isStale(c.renewed, now) {
		c.renewed = now
		c.Conn.SetWriteDeadline(now.Add(serverPatience))
	}
	return c.Conn.Write(p)
}

// CloseWrite passes on the end of what the client says.
func (c *sandboxConn) CloseWrite() error { return c.Conn.(*net.TCPConn).CloseWrite() }
