package gateway

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"shoal/agent/internal/steady"
)

const maxControlLine = 64 << 10

// control is the control socket. Each command is one line of JSON.
type control struct {
	path     string
	listener *net.UnixListener
	created  os.FileInfo // the socket's own file

	connections  atomic.Int64
	lastClosedAt atomic.Int64 // when the last connection ended, by steady.Now
}

// listenControl takes the path over from a gateway that has it already. That one keeps the connections that it has.
func listenControl(path string) (*control, error) {
	temporary := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.Remove(temporary); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: temporary, Net: "unix"})
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false)
	c := &control{path: path, listener: listener}
	c.lastClosedAt.Store(int64(steady.Now()))
	if err := c.takePath(temporary); err != nil {
		listener.Close()
		os.Remove(temporary)
		return nil, err
	}
	return c, nil
}

// takePath replaces the socket at the path in one step.
func (c *control) takePath(temporary string) error {
	if err := os.Chmod(temporary, 0o600); err != nil {
		return err
	}
	var err error
	if c.created, err = os.Lstat(temporary); err != nil {
		return err
	}
	return os.Rename(temporary, c.path)
}

// close removes the socket, unless a successor has taken the path over.
func (c *control) close() {
	c.listener.Close()
	if now, err := os.Lstat(c.path); err == nil && os.SameFile(now, c.created) {
		os.Remove(c.path)
	}
}

// idle returns for how long there has been no connection.
func (c *control) idle() time.Duration {
	if c.connections.Load() > 0 {
		return 0
	}
	return steady.Now() - time.Duration(c.lastClosedAt.Load())
}

// command is one line on the control socket.
type command struct {
	Op string `json:"op"`
}

func (g *Gateway) acceptControl() {
	for {
		conn, err := g.control.listener.AcceptUnix()
		if err != nil {
			return
		}
		g.control.connections.Add(1)
		go func() {
			defer func() {
				conn.Close()
				g.control.lastClosedAt.Store(int64(steady.Now()))
				g.control.connections.Add(-1)
			}()
			if isOwnUser(conn) {
				g.serveControl(conn)
			}
		}()
	}
}

// serveControl answers commands until the connection ends.
func (g *Gateway) serveControl(conn *net.UnixConn) {
	lines := bufio.NewScanner(conn)
	lines.Buffer(make([]byte, 0, 4<<10), maxControlLine)
	for lines.Scan() {
		var c command
		var answer any
		var rights []byte
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			c = command{}
			answer = map[string]string{"error": "not JSON"}
		} else {
			answer, rights = g.execute(c)
		}
		line, err := json.Marshal(answer)
		if err != nil {
			return
		}
		_, _, err = conn.WriteMsgUnix(append(line, '\n'), rights, nil)
		if c.Op == "drain" || c.Op == "stop" { // after the answer, which the end of the process would cut off
			g.stop()
		}
		if err != nil {
			return
		}
	}
}

// execute returns the answer and the socket control message that is sent along with it.
func (g *Gateway) execute(c command) (answer any, rights []byte) {
	switch c.Op {
	case "info":
		return g.info(), nil
	case "metrics":
		return g.metrics(), nil
	case "listener":
		return map[string]any{"ok": struct{}{}}, syscall.UnixRights(int(g.listenerFile.Fd()))
	case "drain":
		return map[string]any{"ok": struct{}{}}, nil
	case "stop":
		g.stopNow.Store(true)
		return map[string]any{"ok": struct{}{}}, nil
	}
	return map[string]string{"error": fmt.Sprintf("op: there is no %q", c.Op)}, nil
}

// info is the answer to the command "info".
type info struct {
	Pid      int    `json:"pid"`
	Version  string `json:"version"`
	Replicas int    `json:"replicas"`
	Open     int64  `json:"open"`     // client connections
	Requests int64  `json:"requests"` // in progress
	Draining bool   `json:"draining"`
}

func (g *Gateway) info() info {
	return info{
		Pid: os.Getpid(), Version: g.version, Replicas: len(*g.replicas.list.Load()),
		Open: g.clients.open.Load(), Requests: g.requests.Load(), Draining: g.draining.Load(),
	}
}

// isOwnUser reports whether the peer runs as the gateway's own user, according to the kernel.
func isOwnUser(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	own := false
	if err := raw.Control(func(fd uintptr) {
		credentials, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
		own = err == nil && int(credentials.Uid) == os.Getuid()
	}); err != nil {
		return false
	}
	return own
}
