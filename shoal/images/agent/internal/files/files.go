// Package files answers the requests that have to do with a sandbox's files.
//
// The agent is often root while the code inside is not, and that code may change any tree under the agent's hands. So what was
// opened is checked again and changed through its descriptor, trees are walked from open directory to open directory, no link
// is followed below the path that the client named, and nothing is opened in a way that waits for others (a FIFO's other end).
package files

import (
	"errors"
	"io/fs"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/mux"
)

// Owner is who shall own what is made.
type Owner struct{ UID, GID int }

// Handler answers one request: it ends the stream with a reply, or returns the error that shall end it. That is
// mux.ErrLost where nobody waits any more, and frame.ErrMalformed for what is no JSON and must end the connection.
type Handler func(st *mux.Stream, request []byte) error

// Handlers are all the requests of the scope `files`, by their op. ownerOf finds a user of the sandbox; "" is its default one.
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

// failed is the error of doing op to path, which came in the given field.
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

// lost tells whether nobody waits for the stream any more: long work asks from time to time. What has no stream is never lost.
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
