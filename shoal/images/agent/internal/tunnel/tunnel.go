// Package tunnel is the agent's side of a raw connection: it dials a port on the sandbox's own loopback and joins it to the client's.
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
	// Max is how many connections may be dialled or open at once. It leaves room for the others among those that an agent has at all.
	Max = 512

	dialPatience  = 5 * time.Second
	writePatience = 5 * time.Second
	version       = 1
)

// loopbacks is where a server inside may listen, in the order in which they are tried. Never a name: the sandbox could say what it means.
var loopbacks = [...]string{"127.0.0.1", "::1"}

// Tunnels counts the open connections of one agent.
type Tunnels struct {
	open atomic.Int64
}

type answer struct {
	Version int          `json:"v"`
	OK      bool         `json:"ok,omitempty"`
	Error   *fault.Fault `json:"error,omitempty"`
}

// Serve dials the port, says in one HELLO how that went, and from then on carries raw bytes until both directions are over. ahead is what the
// client sent before it heard. file is the connection from the relay; it is closed when Serve returns.
func (t *Tunnels) Serve(file *os.File, ahead []byte, port int) error {
	defer file.Close()
	client, err := unixConn(file)
	if err != nil {
		return err
	}
	file.Close() // client has its own descriptor
	defer client.Close()
	inside, err := t.dial(port)
	if err != nil {
		return greet(client, answer{Version: version, Error: fault.From(err)})
	}
	defer t.open.Add(-1)
	defer inside.Close()
	if err := greet(client, answer{Version: version, OK: true}); err != nil {
		return err
	}
	if len(ahead) > 0 { // fits into the socket's buffer
		if _, err := inside.Write(ahead); err != nil {
			return err
		}
	}
	duplex.Join(client, inside)
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
	return greet(client, answer{Version: version, Error: f})
}

// dial connects to the port and counts that; the caller counts it back.
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
	ctx, cancel := context.WithTimeout(context.Background(), dialPatience)
	defer cancel()
	var dialer net.Dialer
	for _, host := range loopbacks {
		var found net.Conn
		if found, err = dialer.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port))); err == nil {
			return found.(*net.TCPConn), nil
		}
		if ctx.Err() != nil {
			return nil, fault.New(fault.Unavailable,
				"port %d in the sandbox did not accept within %s: is its server busy?", port, dialPatience)
		}
	}
	var errno syscall.Errno
	if errors.As(err, &errno) && fault.From(errno).Code == fault.QuotaExceeded {
		return nil, err // out of descriptors or memory
	}
	return nil, fault.New(fault.Unavailable,
		"nothing listens on port %d in the sandbox; start the server, and have it listen on 127.0.0.1 or 0.0.0.0", port)
}

func greet(conn net.Conn, a answer) error {
	payload, err := json.Marshal(a)
	if err != nil {
		return err
	}
	conn.SetWriteDeadline(time.Now().Add(writePatience))
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
