package server

import (
	"shoal/agent/internal/files"
	"shoal/agent/internal/mux"
)

// operation is one row of the protocol's table of requests.
type operation struct {
	scope string // "": no scope is needed
	quiet bool   // does not count as activity
	do    func(st *mux.Stream, request []byte) error
}

// allOperations returns every request that the agent answers.
func (s *Server) allOperations() map[string]operation {
	const exec, admin = "exec", "admin"
	all := map[string]operation{
		"ping": {"", true, s.ping},

		"run":    {exec, false, s.run},
		"exec":   {exec, false, s.exec},
		"output": {exec, true, s.output}, // counts itself, because a peek is not activity
		"stdin":  {exec, false, s.stdin},
		"wait":   {exec, true, s.wait}, // quiet: every process except p-main counts as activity itself
		"signal": {exec, false, s.signal},
		"clear":  {exec, false, s.clear},
		"resize": {exec, false, s.resize},
		"ps":     {exec, false, s.ps},

		"configure": {admin, false, s.configure},
		"idle":      {admin, true, s.idle},
		"shutdown":  {admin, true, s.shutdown},
	}
	for op, do := range files.Handlers(s.table.User) {
		all[op] = operation{"files", false, do}
	}
	return all
}
