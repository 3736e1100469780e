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
)

const maxControlLine = 64 << 10

// control is the socket on which the node gives orders, a line of JSON each.
type control struct {
	path     string
	listener *net.UnixListener
	made     os.FileInfo

	held   atomic.Int64 // connections
	heldAt atomic.Int64 // unix nanoseconds of the moment in which the last one ended
}

// listenControl takes the path over from whichever gateway had it: that one serves those who are with it to their end.
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
	c.heldAt.Store(time.Now().UnixNano())
	if err := c.takePath(temporary); err != nil {
		listener.Close()
		os.Remove(temporary)
		return nil, err
	}
	return c, nil
}

func (c *control) takePath(temporary string) error {
	if err := os.Chmod(temporary, 0o600); err != nil {
		return err
	}
	var err error
	if c.made, err = os.Lstat(temporary); err != nil {
		return err
	}
	return os.Rename(temporary, c.path)
}

// close removes the socket, unless the path is a successor's by now.
func (c *control) close() {
	c.listener.Close()
	if now, err := os.Lstat(c.path); err == nil && os.SameFile(now, c.made) {
		os.Remove(c.path)
	}
}

// idle is for how long nobody has been there.
func (c *control) idle() time.Duration {
	if c.held.Load() > 0 {
		return 0
	}
	return time.Since(time.Unix(0, c.heldAt.Load()))
}

// order is one line on the control socket.
type order struct {
	Op string `json:"op"`
}

func (g *Gateway) acceptControl() {
	for {
		conn, err := g.control.listener.AcceptUnix()
		if err != nil {
			return
		}
		g.control.held.Add(1)
		go func() {
			defer func() {
				conn.Close()
				g.control.heldAt.Store(time.Now().UnixNano())
				g.control.held.Add(-1)
			}()
			if isOwnUser(conn) {
				g.obey(conn)
			}
		}()
	}
}

// obey answers orders until the connection ends.
func (g *Gateway) obey(conn *net.UnixConn) {
	lines := bufio.NewScanner(conn)
	lines.Buffer(make([]byte, 0, 4<<10), maxControlLine)
	for lines.Scan() {
		var o order
		var answer any
		var rights []byte
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			answer = map[string]string{"error": "not JSON"}
		} else {
			answer, rights = g.carryOut(o)
		}
		line, err := json.Marshal(answer)
		if err != nil {
			return
		}
		if _, _, err := conn.WriteMsgUnix(append(line, '\n'), rights, nil); err != nil {
			return
		}
	}
}

// carryOut returns the answer, and the control message that goes along with it.
func (g *Gateway) carryOut(o order) (answer any, rights []byte) {
	switch o.Op {
	case "info":
		return g.info(), nil
	case "listener":
		return map[string]any{"ok": struct{}{}}, syscall.UnixRights(int(g.listening.Fd()))
	case "drain":
		g.stop()
		return map[string]any{"ok": struct{}{}}, nil
	case "stop":
		g.hasty.Store(true)
		g.stop()
		return map[string]any{"ok": struct{}{}}, nil
	}
	return map[string]string{"error": fmt.Sprintf("op: there is no %q", o.Op)}, nil
}

// info is what the node wants to know.
type info struct {
	Pid      int    `json:"pid"`
	Version  string `json:"version"`
	Replicas int    `json:"replicas"`
	Open     int64  `json:"open"`     // connections of clients
	Requests int64  `json:"requests"` // under way
	Draining bool   `json:"draining"`
}

func (g *Gateway) info() info {
	return info{
		Pid: os.Getpid(), Version: g.version, Replicas: len(*g.replicas.list.Load()),
		Open: g.clients.open.Load(), Requests: g.requests.Load(), Draining: g.draining.Load(),
	}
}

// isOwnUser tells whether the process at the other end is of the user that the gateway itself runs as. The kernel says so, not the peer.
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
