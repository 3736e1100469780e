package server

import (
	"shoal/agent/internal/files"
	"shoal/agent/internal/mux"
)

// operation is one row of the protocol's table of requests.
type operation struct {
	scope string // "": for everybody
	quiet bool   // does not count as activity
	do    func(st *mux.Stream, request []byte) error
}

// operations is every request there is.
func (s *Server) allOperations() map[string]operation {
	const exec, admin = "exec", "admin"
	all := map[string]operation{
		"ping": {"", true, s.ping},

		"run":    {exec, false, s.run},
		"exec":   {exec, false, s.exec},
		"output": {exec, true, s.output}, // counts itself: one who peeks is no activity
		"stdin":  {exec, false, s.stdin},
		"wait":   {exec, true, s.wait}, // of p-main it is quiet; of any other, the process itself is activity
		"signal": {exec, false, s.signal},
		"resize": {exec, false, s.resize},
		"ps":     {exec, false, s.ps},

		"configure": {admin, false, s.configure},
		"idle":      {admin, true, s.idle},
		"shutdown":  {admin, true, s.shutdown},
	}
	for op, do := range files.Handlers(s.ownerOf) {
		all[op] = operation{"files", false, do}
	}
	return all
}

// ownerOf finds who shall own what a request of the files makes.
func (s *Server) ownerOf(user string) (files.Owner, error) {
	who, err := s.table.User(user)
	if err != nil {
		return files.Owner{}, err
	}
	return files.Owner{UID: int(who.UID), GID: int(who.GID)}, nil
}
