// Package server answers what clients ask of the agent.
package server

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"time"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/frame"
	"shoal/agent/internal/mux"
	"shoal/agent/internal/proc"
	"shoal/agent/internal/tunnel"
)

// Version is the version of the agent, which ping and the relay report.
const Version = "1"

const scopeTunnel = "tunnel"

// Server is the agent's state: its processes, and how busy it is.
type Server struct {
	table      *proc.Table
	activity   *Activity
	operations map[string]operation
	tunnels    tunnel.Tunnels
	base       proc.Defaults // the container's own defaults, before any configure
	started    time.Time
	stop       func(grace time.Duration)
}

// New makes a server for the processes of a table. stop ends all processes, and then the agent.
func New(table *proc.Table, activity *Activity, stop func(grace time.Duration)) *Server {
	s := &Server{table: table, activity: activity, base: table.Defaults(), started: time.Now(), stop: stop}
	s.operations = s.allOperations()
	return s
}

type hello struct {
	V      int      `json:"v"`
	Scopes []string `json:"scopes"`
	Dial   int      `json:"dial"` // not 0: the connection carries raw bytes to and from this port, not frames
}

// firstByte is a connection that calls began once, when its first bytes arrive.
type firstByte struct {
	*os.File
	began func()
}

func (f *firstByte) Read(p []byte) (int, error) {
	n, err := f.File.Read(p)
	if n > 0 && f.began != nil {
		f.began()
		f.began = nil
	}
	return n, err
}

// Serve answers the requests of one connection from the relay until it ends. It calls began when the first bytes
// arrive.
func (s *Server) Serve(file *os.File, began func()) error {
	defer file.Close()
	source := &firstByte{file, began}
	decoder := frame.NewDecoder(source)
	first, err := decoder.Next()
	if err != nil {
		return err
	}
	var greeting hello
	if first.Kind != frame.Hello || json.Unmarshal(first.Payload, &greeting) != nil || greeting.V != 1 {
		return frame.ErrMalformed
	}
	if greeting.Dial != 0 {
		return s.tunnel(file, decoder.Buffered(), greeting)
	}
	decoder.Admitted = true
	connection := mux.New(file, decoder)
	return connection.Serve(func(st *mux.Stream, request []byte) { s.answer(st, request, greeting.Scopes) })
}

// tunnel carries raw bytes to and from a port. The sandbox counts as active meanwhile.
func (s *Server) tunnel(file *os.File, ahead []byte, greeting hello) error {
	if !slices.Contains(greeting.Scopes, scopeTunnel) {
		return tunnel.Refuse(file, lacks("dial", scopeTunnel))
	}
	s.activity.Change(+1)
	defer s.activity.Change(-1)
	return s.tunnels.Serve(file, ahead, greeting.Dial)
}

// lacks returns the error for a token without the scope.
func lacks(what, scope string) *fault.Fault {
	return fault.New(fault.PermissionDenied, "%s needs the scope %s, which the token does not give", what, scope)
}

func (s *Server) answer(st *mux.Stream, request []byte, scopes []string) {
	op, err := opOf(request)
	if err == nil {
		err = s.perform(op, st, request, scopes)
	}
	switch {
	case err == nil:
	case errors.Is(err, errGrammar), errors.Is(err, frame.ErrMalformed):
		st.Break()
	default:
		st.Fail(err)
	}
}

func (s *Server) perform(op string, st *mux.Stream, request []byte, scopes []string) error {
	what, known := s.operations[op]
	if !known {
		return fault.Invalid("op", "no request has this name")
	}
	if what.scope != "" && !slices.Contains(scopes, what.scope) {
		return lacks(op, what.scope)
	}
	if !what.quiet {
		s.activity.Change(+1)
		defer s.activity.Change(-1)
	}
	return what.do(st, request)
}

// reply ends the stream with value, unless err is set. It returns err.
func reply(st *mux.Stream, value any, err error) error {
	if err == nil {
		st.Reply(value)
	}
	return err
}

type empty struct{}
