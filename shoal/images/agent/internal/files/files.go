// Package files answers the requests about a sandbox's files.
//
// Each request acts as a user of the sandbox (see actor), so that the kernel decides what it may do. Code in the sandbox
// may change any tree while the agent works on it. Therefore a file is checked again after it was opened, and changed
// through its descriptor. Trees are walked from open directory to open directory. No link is followed below the path
// that the client named. No open waits for another process, such as the other end of a FIFO.
package files

import (
	"errors"
	"io/fs"
	"runtime"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/mux"
	"shoal/agent/internal/users"
)

// Handler answers one request. It ends the stream with a reply, or returns the error with which the stream must end. It
// returns mux.ErrLost if no client waits any more, and frame.ErrMalformed, which must end the connection, for invalid
// JSON.
type Handler func(st *mux.Stream, request []byte) error

// Handlers returns the handlers of all requests of the scope `files`, by op. userOf finds a user of the sandbox; "" is
// the default user.
func Handlers(userOf func(user string) (*users.User, error)) map[string]Handler {
	// Go starts a thread that makes the others when a goroutine first locks its own: now, while there is surely room.
	runtime.LockOSThread()
	runtime.UnlockOSThread()
	s := &service{userOf: userOf}
	return map[string]Handler{
		"read":   handler(s.read),
		"write":  handler(s.write),
		"list":   handler(s.list),
		"stat":   handler(s.stat),
		"mkdir":  handler(s.mkdir),
		"remove": handler(s.remove),
		"move":   handler(s.move),
		"copy":   handler(s.copy),
		"pack":   handler(s.pack),
		"unpack": handler(s.unpack),
		"watch":  handler(s.watch),
	}
}

type service struct {
	userOf func(user string) (*users.User, error)
	pages  pages
}

// enter makes the request act as a user. The caller leaves.
func (s *service) enter(user string) (*actor, error) {
	who, err := s.userOf(user)
	if err != nil {
		return nil, err
	}
	as := actorFor(who)
	return as, as.enter()
}

func handler[R any](do func(st *mux.Stream, request *R) error) Handler {
	return func(st *mux.Stream, raw []byte) error {
		request := new(R)
		if err := decode(raw, request); err != nil {
			return err
		}
		return do(st, request)
	}
}

type empty struct{}

// failed adds op and path to an error, and names the field in which the path came.
func failed(field, op, path string, err error) error {
	if err == nil || errors.Is(err, mux.ErrLost) {
		return err
	}
	var known *fs.PathError
	var already *fault.Fault
	if !errors.As(err, &known) && !errors.As(err, &already) {
		err = &fs.PathError{Op: op, Path: path, Err: err}
	}
	return fault.Path(field, err)
}

// lost reports whether no client waits for the stream any more. Long work asks from time to time. Work without a stream
// is never lost.
func lost(st *mux.Stream) bool {
	if st == nil {
		return false
	}
	select {
	case <-st.Done():
		return true
	default:
		return false
	}
}
