package relay

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sort"
	"strings"
	"time"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/steady"
	"shoal/agent/internal/token"
)

const maxControlLine = 64 << 10

// command is one line on the control socket.
type command struct {
	Op  string `json:"op"`
	Key string `json:"key"`

	// add: the container's first process, where it is one of the node's and runs already
	Pid     int    `json:"pid"`
	Started uint64 `json:"started"`

	// expose, and Port for unexpose
	Port    int    `json:"port"`
	Listen  int    `json:"listen"`
	Bind    string `json:"bind"`
	Sandbox string `json:"sandbox"`
	Private bool   `json:"private"`
}

// errorReply is the answer to a command that failed. Code, if there is one, is one of shoal.model.errors.
type errorReply struct {
	Error string     `json:"error"`
	Code  fault.Code `json:"code,omitempty"`
	Field string     `json:"field,omitempty"`
}

func newErrorReply(err error) errorReply {
	var f *fault.Fault
	if errors.As(err, &f) {
		return errorReply{Error: f.Message, Code: f.Code, Field: f.Field}
	}
	return errorReply{Error: err.Error()}
}

// listenControl makes the control socket, for root only. It replaces a socket on which no relay answers any more.
func listenControl(path string) (*net.UnixListener, error) {
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		conn.Close()
		return nil, fmt.Errorf("another relay answers at %s", path)
	}
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		listener.Close()
		return nil, err
	}
	return listener, nil
}

func (r *Relay) acceptControl(listener *net.UnixListener) {
	for {
		conn, err := listener.AcceptUnix()
		if err != nil {
			return
		}
		r.controlConns.Add(1)
		go func() {
			defer func() {
				conn.Close()
				r.lastControlAt.Store(int64(steady.Now()))
				r.controlConns.Add(-1)
			}()
			r.serveControl(conn)
		}()
	}
}

// serveControl answers commands until the connection ends.
func (r *Relay) serveControl(conn *net.UnixConn) {
	lines := bufio.NewScanner(conn)
	lines.Buffer(make([]byte, 0, 4<<10), maxControlLine)
	for lines.Scan() {
		var cmd command
		var answer any
		if err := json.Unmarshal(lines.Bytes(), &cmd); err != nil {
			answer = errorReply{Error: "not JSON"}
		} else {
			answer = r.execute(cmd)
		}
		line, err := json.Marshal(answer)
		if err != nil {
			return
		}
		if _, err := conn.Write(append(line, '\n')); err != nil {
			return
		}
		if cmd.Op == "stop" {
			r.stop()
			return
		}
	}
}

func (r *Relay) execute(cmd command) any {
	switch cmd.Op {
	case "info":
		return r.info()
	case "metrics":
		return r.metrics()
	case "stop":
		return struct{}{}
	case "add", "remove", "expose", "unexpose":
		if !token.ValidKey(cmd.Key) {
			return errorReply{Error: fmt.Sprintf("key: %q is not a container's", cmd.Key)}
		}
	default:
		return errorReply{Error: fmt.Sprintf("op: there is no %q", cmd.Op)}
	}
	switch cmd.Op {
	case "add":
		if err := r.add(cmd.Key, process{cmd.Pid, cmd.Started}); err != nil {
			return newErrorReply(err)
		}
	case "remove":
		r.remove(cmd.Key)
	case "expose":
		address, err := r.expose(cmd)
		if err != nil {
			return newErrorReply(err)
		}
		return map[string]any{"ok": map[string]string{"address": address}}
	case "unexpose":
		r.unexpose(cmd.Key, cmd.Port)
	}
	return struct{}{}
}

// info is the answer to the command "info".
type info struct {
	Address     string   `json:"address"`
	Fingerprint string   `json:"fingerprint"` // of the certificate, or empty without TLS
	Pid         int      `json:"pid"`
	Version     string   `json:"version"`
	Containers  int      `json:"containers"`
	Connections int      `json:"connections"`
	Connected   []string `json:"connected"`
	// Exposed is sorted by key and port.
	Exposed []exposed `json:"exposed"`
}

func (r *Relay) info() info {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := info{
		Address: r.address(), Fingerprint: r.config.fingerprint(), Pid: os.Getpid(), Version: r.version,
		Containers: len(r.containers),
		Connected:  []string{}, Exposed: []exposed{},
	}
	for key, c := range r.containers {
		i.Connections += c.connections()
		i.Exposed = append(i.Exposed, c.exposed()...)
		if len(c.parked) > 0 {
			i.Connected = append(i.Connected, key)
		}
	}
	sort.Strings(i.Connected)
	slices.SortFunc(i.Exposed, func(a, b exposed) int {
		return cmp.Or(strings.Compare(a.Key, b.Key), cmp.Compare(a.Port, b.Port))
	})
	return i
}
