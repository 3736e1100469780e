// Package tunnel is the agent's side of a raw connection: it connects to a port on the sandbox's loopback and joins
// that to the client.
package tunnel

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"shoal/agent/internal/duplex"
	"shoal/agent/internal/fault"
	"shoal/agent/internal/frame"
)

const (
	// Max bounds the connections that are open or being dialled. It leaves the agent room for connections that carry
	// requests.
	Max = 512

	dialTimeout  = 5 * time.Second
	writeTimeout = 5 * time.Second
	version      = 1
)

// loopbacks are the addresses that are tried, in this order. There is no name among them, because the sandbox could
// change what it resolves to.
var loopbacks = [...]string{"127.0.0.1", "::1"}

// Tunnels counts the open connections of one agent.
type Tunnels struct {
	open atomic.Int64
}

type hello struct {
	Version int          `json:"v"`
	OK      bool         `json:"ok,omitempty"`
	Error   *fault.Fault `json:"error,omitempty"`
}

// Serve connects to the port, sends one HELLO with the result, and then copies raw bytes until both directions have
// ended. early is what the client sent before it received the HELLO. file is the connection from the relay; Serve
// closes it.
func (t *Tunnels) Serve(file *os.File, early []byte, port int) error {
	defer file.Close()
	client, err := unixConn(file)
	if err != nil {
		return err
	}
	file.Close() // client has its own descriptor
	defer client.Close()
	server, err := t.dial(port)
	if err != nil {
		return sendHello(client, hello{Version: version, Error: fault.From(err)})
	}
	defer t.open.Add(-1)
	defer server.Close()
	if err := sendHello(client, hello{Version: version, OK: true}); err != nil {
		return err
	}
	if len(early) > 0 { // it fits into the socket's buffer
		if _, err := server.Write(early); err != nil {
			return err
		}
	}
	duplex.Join(client, server)
	return nil
}

// Refuse answers a client with an error in the agent's HELLO.
func Refuse(file *os.File, f *fault.Fault) error {
	defer file.Close()
	client, err := unixConn(file)
	if err != nil {
		return err
	}
	defer client.Close()
	return sendHello(client, hello{Version: version, Error: f})
}

// dial connects to the port and increments t.open, which the caller decrements.
func (t *Tunnels) dial(port int) (conn *net.TCPConn, err error) {
	if port < 1 || port > 65535 {
		return nil, fault.Invalid("dial", "%d is not a port: 1 to 65535", port)
	}
	defer func() {
		if err != nil {
			t.open.Add(-1)
		}
	}()
	if t.open.Add(1) > Max {
		return nil, fault.New(fault.QuotaExceeded, "%d tunnel connections into this sandbox are open: close some", Max)
	}
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	var dialer net.Dialer
	for _, host := range loopbacks {
		var found net.Conn
		if found, err = dialer.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port))); err == nil {
			return found.(*net.TCPConn), nil
		}
		if ctx.Err() != nil {
			return nil, fault.New(fault.Unavailable,
				"port %d in the sandbox did not accept the connection within %s: is its server busy?", port, dialTimeout)
		}
	}
	var errno syscall.Errno
	if errors.As(err, &errno) && fault.From(errno).Code == fault.QuotaExceeded {
		return nil, err // out of file descriptors or memory
	}
	return nil, fault.New(fault.Unavailable,
		"nothing listens on port %d in the sandbox; start the server, and have it listen on 127.0.0.1 or 0.0.0.0", port)
}

func sendHello(conn net.Conn, a hello) error {
	payload, err := json.Marshal(a)
	if err != nil {
		return err
	}
	conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := conn.Write(frame.Append(nil, frame.Hello, 0, payload)); err != nil {
		return err
	}
	return conn.SetWriteDeadline(time.Time{})
}

func unixConn(file *os.File) (*net.UnixConn, error) {
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	unix, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, errors.New("not a unix socket")
	}
	return unix, nil
}
