package server

import (
	"errors"
	"io"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/mux"
	"shoal/agent/internal/proc"
)

type stdinRequest struct {
	Op     string `json:"op"`
	ID     string `json:"id"`
	Offset int64  `json:"offset"`
}

func (s *Server) stdin(st *mux.Stream, raw []byte) error {
	request, err := decode[stdinRequest](raw)
	if err != nil {
		return err
	}
	p, err := s.table.Get(request.ID)
	if err != nil {
		return err
	}
	if p.Stdin == nil {
		return fault.New(fault.FailedPrecondition, "%s was started without standard input: start it with stdin", p.ID)
	}
	if request.Offset < 0 {
		return fault.Invalid("offset", "%d is negative", request.Offset)
	}
	writer, has, err := p.Stdin.Open(request.Offset)
	if err != nil {
		return superseded(err)
	}
	if err := st.Event(map[string]int64{"offset": has}); err != nil {
		return err
	}
	if has, err = pour(st, writer, false); err != nil {
		return superseded(err)
	}
	st.Reply(map[string]int64{"offset": has})
	return nil
}

// feed gives a run its input. As in a shell's pipe, it is no error if the command does not read all of it.
func feed(st *mux.Stream, p *proc.Process) {
	writer, _, err := p.Stdin.Open(0)
	if err != nil {
		return
	}
	if _, err = pour(st, writer, true); err == nil {
		return
	}
	for { // drop the rest of the input, so that the client can finish sending
		f, err := st.Recv()
		if err != nil {
			return
		}
		st.Took(f)
	}
}

// pour moves data from the client to the process until END, and then closes the input. Credit tells the client that a
// piece has reached the process. If the process did not take a piece, credit is given only when alwaysCredit is set,
// because then the client need not know.
func pour(st *mux.Stream, writer *proc.Writer, alwaysCredit bool) (int64, error) {
	over := make(chan struct{})
	defer close(over)
	go func() {
		select {
		case <-st.Done():
			writer.Interrupt()
		case <-over:
		}
	}()
	for {
		f, err := st.Recv()
		if err == io.EOF {
			return writer.End()
		}
		if err != nil {
			return 0, err
		}
		if err = writer.Write(f.Payload); err == nil || alwaysCredit {
			st.Took(f)
		}
		if err != nil {
			return 0, err
		}
	}
}

func superseded(err error) error {
	if errors.Is(err, proc.ErrSuperseded) {
		return fault.New(fault.FailedPrecondition, "another client writes to this standard input now")
	}
	return err
}
