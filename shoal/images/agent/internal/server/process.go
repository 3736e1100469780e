package server

import (
	"syscall"
	"time"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/mux"
	"shoal/agent/internal/proc"
)

const maxSignal = 64

type execRequest struct {
	start
	Pty  *proc.Terminal `json:"pty"`
	Tail bool           `json:"tail"`
}

func (s *Server) exec(st *mux.Stream, raw []byte) error {
	request, err := decode[execRequest](raw)
	if err != nil {
		return err
	}
	spec, err := request.spec()
	if err != nil {
		return err
	}
	if request.Pty != nil && (request.Pty.Rows == 0 || request.Pty.Cols == 0) {
		return fault.Invalid("pty", "rows and cols must be 1 to 65535")
	}
	spec.Pty, spec.Tail = request.Pty, request.Tail
	p, err := s.table.Start(spec)
	if err != nil {
		return err
	}
	st.Reply(map[string]any{"id": p.ID, "pid": p.Pid()})
	return nil
}

type processRequest struct {
	Op string `json:"op"`
	ID string `json:"id"`
}

func (s *Server) wait(st *mux.Stream, raw []byte) error {
	request, err := decode[processRequest](raw)
	if err != nil {
		return err
	}
	p, err := s.table.Get(request.ID)
	if err != nil {
		return err
	}
	select {
	case <-p.Exited():
	case <-st.Done():
		return mux.ErrLost
	}
	exit, timedOut, took := p.Exit()
	st.Reply(map[string]any{"exit": exit, "timed_out": timedOut, "duration_us": took.Microseconds()})
	return nil
}

type signalRequest struct {
	Op     string `json:"op"`
	ID     string `json:"id"`
	Signal int    `json:"signal"`
	Tree   bool   `json:"tree"`
}

func (s *Server) signal(st *mux.Stream, raw []byte) error {
	request, err := decode[signalRequest](raw)
	if err != nil {
		return err
	}
	if request.Signal < 0 || request.Signal > maxSignal {
		return fault.Invalid("signal", "%d is not between 0 and %d", request.Signal, maxSignal)
	}
	p, err := s.table.Get(request.ID)
	if err == nil {
		err = p.Signal(syscall.Signal(request.Signal), request.Tree)
	}
	return reply(st, empty{}, err)
}

// clear kills every process in the sandbox but the agent.
func (s *Server) clear(st *mux.Stream, raw []byte) error {
	if _, err := decode[opOnly](raw); err != nil {
		return err
	}
	if main, err := s.table.Get(proc.MainID); err == nil && main.Running() {
		return fault.New(fault.FailedPrecondition, "the sandbox ends with its own command: terminate it instead")
	}
	return reply(st, empty{}, s.table.Clear())
}

type resizeRequest struct {
	Op   string `json:"op"`
	ID   string `json:"id"`
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

func (s *Server) resize(st *mux.Stream, raw []byte) error {
	request, err := decode[resizeRequest](raw)
	if err != nil {
		return err
	}
	if request.Rows == 0 || request.Cols == 0 {
		return fault.Invalid("rows", "rows and cols must be 1 to 65535")
	}
	p, err := s.table.Get(request.ID)
	if err != nil {
		return err
	}
	terminal, err := p.Resize(request.Rows, request.Cols)
	if err == nil && !terminal {
		err = fault.New(fault.FailedPrecondition, "%s has no terminal: start it with pty", p.ID)
	}
	return reply(st, empty{}, err)
}

type psRow struct {
	ID      string   `json:"id"`
	Pid     int      `json:"pid"`
	Argv    []string `json:"argv"`
	Started int64    `json:"started_ms"`
	Running bool     `json:"running"`
	Exit    *int     `json:"exit"`
}

// maxShown bounds the command lines in the answer of ps in bytes, so that it fits into one frame even if every
// character must be escaped.
const maxShown = 96 << 10

func (s *Server) ps(st *mux.Stream, raw []byte) error {
	if _, err := decode[opOnly](raw); err != nil {
		return err
	}
	all := s.table.List()
	room := maxShown / (len(all) + 1)
	rows := make([]psRow, 0, len(all))
	for _, p := range all {
		r := psRow{ID: p.ID, Pid: p.Pid(), Argv: cut(p.Argv(), room), Started: p.Started.UnixMilli(), Running: p.Running()}
		if !r.Running {
			exit, _, _ := p.Exit()
			r.Exit = &exit
		}
		rows = append(rows, r)
	}
	st.Reply(map[string]any{"processes": rows})
	return nil
}

func cut(argv []string, room int) []string {
	shown := []string{}
	for _, arg := range argv {
		if room -= len(arg); room < 0 {
			break
		}
		shown = append(shown, arg)
	}
	return shown
}

type opOnly struct {
	Op string `json:"op"`
}

func (s *Server) ping(st *mux.Stream, raw []byte) error {
	_, err := decode[opOnly](raw)
	_, known := s.table.Running()
	up := time.Since(s.started).Milliseconds()
	return reply(st, map[string]any{"version": Version, "uptime_ms": up, "processes": known}, err)
}
