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
	"shoal/agent/internal/token"
)

const maxControlLine = 64 << 10

// order is one line on the control socket.
type order struct {
	Op  string `json:"op"`
	Key string `json:"key"`

	// expose, and Port for unexpose
	Port    int    `json:"port"`
	Listen  int    `json:"listen"`
	Bind    string `json:"bind"`
	Sandbox string `json:"sandbox"`
	Private bool   `json:"private"`
}

// declined is the answer to an order that is not carried out. Code is one of shoal.model.errors, where there is one.
type declined struct {
	Error string     `json:"error"`
	Code  fault.Code `json:"code,omitempty"`
	Field string     `json:"field,omitempty"`
}

func refuse(err error) declined {
	var f *fault.Fault
	if errors.As(err, &f) {
		return declined{Error: f.Message, Code: f.Code, Field: f.Field}
	}
	return declined{Error: err.Error()}
}

// listenControl makes the control socket, for root only. A socket that nobody answers is a dead relay's and is replaced.
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
		r.controllers.Add(1)
		go func() {
			defer func() {
				conn.Close()
				r.controlledAt.Store(time.Now().UnixNano())
				r.controllers.Add(-1)
			}()
			r.obey(conn)
		}()
	}
}

// obey answers orders, a line each, until the connection ends.
func (r *Relay) obey(conn *net.UnixConn) {
	lines := bufio.NewScanner(conn)
	lines.Buffer(make([]byte, 0, 4<<10), maxControlLine)
	for lines.Scan() {
		var o order
		var answer any
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			answer = declined{Error: "not JSON"}
		} else {
			answer = r.carryOut(o)
		}
		line, err := json.Marshal(answer)
		if err != nil {
			return
		}
		if _, err := conn.Write(append(line, '\n')); err != nil {
			return
		}
		if o.Op == "stop" {
			r.stop()
			return
		}
	}
}

func (r *Relay) carryOut(o order) any {
	switch o.Op {
	case "info":
		return r.info()
	case "stop":
		return struct{}{}
	case "add", "remove", "expose", "unexpose":
		if !token.ValidKey(o.Key) {
			return declined{Error: fmt.Sprintf("key: %q is not a container's", o.Key)}
		}
	default:
		return declined{Error: fmt.Sprintf("op: there is no %q", o.Op)}
	}
	switch o.Op {
	case "add":
		if err := r.add(o.Key); err != nil {
			return refuse(err)
		}
	case "remove":
		r.remove(o.Key)
	case "expose":
		address, err := r.expose(o)
		if err != nil {
			return refuse(err)
		}
		return map[string]any{"ok": map[string]string{"address": address}}
	case "unexpose":
		r.unexpose(o.Key, o.Port)
	}
	return struct{}{}
}

// info is what the node wants to know.
type info struct {
	Address     string   `json:"address"`
	Pid         int      `json:"pid"`
	Version     string   `json:"version"`
	Containers  int      `json:"containers"`
	Connections int      `json:"connections"`
	Connected   []string `json:"connected"`
	// Exposed is by key and port.
	Exposed []exposed `json:"exposed"`
}

func (r *Relay) info() info {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := info{Address: r.address(), Pid: os.Getpid(), Version: r.version, Containers: len(r.containers), Connected: []string{}, Exposed: []exposed{}}
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
