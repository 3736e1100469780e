// Package files answers the requests about a sandbox's files.
//
// The agent is often root while the code in the sandbox is not, and that code may change any tree while the agent works
// on it. Therefore a file is checked again after it was opened, and changed through its descriptor. Trees are walked
// from open directory to open directory. No link is followed below the path that the client named. No open waits for
// another process, such as the other end of a FIFO.
package files

import (
	"errors"
	"io/fs"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/mux"
)

// Owner is the user and group that own new files.
type Owner struct{ UID, GID int }

// Handler answers one request. It ends the stream with a reply, or returns the error with which the stream must end. It
// returns mux.ErrLost if no client waits any more, and frame.ErrMalformed, which must end the connection, for invalid
// JSON.
type Handler func(st *mux.Stream, request []byte) error

// Handlers returns the handlers of all requests of the scope `files`, by op. ownerOf finds a user of the sandbox; "" is
// the default user.
func Handlers(ownerOf func(user string) (Owner, error)) map[string]Handler {
	s := &service{ownerOf}
	return map[string]Handler{
		"read":   handler(read),
		"write":  handler(s.write),
		"list":   handler(list),
		"stat":   handler(stat),
		"mkdir":  handler(s.mkdir),
		"remove": handler(remove),
		"move":   handler(move),
		"pack":   handler(pack),
		"unpack": handler(s.unpack),
		"watch":  handler(watch),
	}
}

type service struct {
	ownerOf func(user string) (Owner, error)
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
