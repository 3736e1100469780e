package server

import (
	"strconv"
	"sync"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/frame"
	"shoal/agent/internal/mux"
	"shoal/agent/internal/proc"
)

const (
	maxOutput = 256 << 20
	// oneWrite is the largest output of an ended run that is sent in one write with its REPLY.
	oneWrite  = 256 << 10
	chunkSize = 64 << 10
	replySize = 160
)

// pieces are buffers for building frames: a header and a chunk of output.
var pieces = sync.Pool{New: func() any { return new([frame.HeaderSize + chunkSize]byte) }}

type runRequest struct {
	start
	MaxOutput *int64 `json:"max_output"`
}

func (s *Server) run(st *mux.Stream, raw []byte) error {
	request, err := decode[runRequest](raw)
	if err != nil {
		return err
	}
	spec, err := request.spec()
	if err != nil {
		return err
	}
	spec.MaxOutput = maxOutput
	if request.MaxOutput != nil {
		if *request.MaxOutput < 0 || *request.MaxOutput > maxOutput {
			return fault.Invalid("max_output", "%d is not between 0 and %d bytes", *request.MaxOutput, maxOutput)
		}
		spec.MaxOutput = *request.MaxOutput
	}
	p, started, err := s.table.Run(spec)
	if err != nil {
		return err
	}
	defer func() { p.Leave(st.Cancelled()) }()
	if request.Stdin && p.Stdin != nil {
		go feed(st, p)
	}
	if started && p.Settle() && answerAtOnce(st, p) {
		return nil
	}
	return streamAnswer(st, p)
}

// answerAtOnce sends the output and the reply in one write. It returns false if the output or the credit does not allow
// it.
func answerAtOnce(st *mux.Stream, p *proc.Process) bool {
	_, out, _ := p.Out.Span()
	_, failed, _ := p.Err.Span()
	total := int(out + failed)
	if total > oneWrite {
		return false
	}
	if got := st.TryReserve(total); got < total {
		st.Unreserve(got)
		return false
	}
	b := make([]byte, 0, total+3*frame.HeaderSize+replySize)
	b = appendOutput(b, frame.Data, st.ID(), p.Out, int(out))
	b = appendOutput(b, frame.ErrData, st.ID(), p.Err, int(failed))
	st.ReplyFrames(appendRunReply(b, st.ID(), p))
	return true
}

func appendOutput(b []byte, kind frame.Kind, stream uint32, ring *proc.Ring, n int) []byte {
	if n == 0 {
		return b
	}
	b = frame.AppendHeader(b, kind, stream, n)
	_, got, _ := ring.Read(0, b[len(b):len(b)+n])
	return b[:len(b)+got]
}

func appendRunReply(b []byte, stream uint32, p *proc.Process) []byte {
	exit, timedOut, took := p.Exit()
	at := len(b)
	b = frame.AppendHeader(b, frame.Reply, stream, 0)
	b = append(b, `{"ok":{"id":"`...)
	b = append(b, p.ID...)
	b = append(b, `","exit":`...)
	b = strconv.AppendInt(b, int64(exit), 10)
	b = append(b, `,"timed_out":`...)
	b = strconv.AppendBool(b, timedOut)
	b = append(b, `,"truncated":`...)
	b = strconv.AppendBool(b, p.Out.Truncated() || p.Err.Truncated())
	b = append(b, `,"duration_us":`...)
	b = strconv.AppendInt(b, took.Microseconds(), 10)
	b = append(b, "}}"...)
	frame.PutHeader(b[at:], frame.Reply, stream, len(b)-at-frame.HeaderSize)
	return b
}

// side is one of a run's two output streams, and how much of it has been sent.
type side struct {
	kind frame.Kind
	ring *proc.Ring
	at   int64
}

// streamAnswer sends output as it comes, and the reply at the end.
func streamAnswer(st *mux.Stream, p *proc.Process) error {
	sides := [2]side{{kind: frame.Data, ring: p.Out}, {kind: frame.ErrData, ring: p.Err}}
	for i := range sides {
		sides[i].ring.Attach(st.Wake())
		defer sides[i].ring.Detach(st.Wake())
	}
	finished := p.Finished()
	for {
		select { // checked before the output is sent: once a run is finished, all its output is in the rings
		case <-finished:
			finished = nil
		default:
		}
		left := false
		for i := range sides {
			more, err := sides[i].send(st, p)
			if err != nil {
				return err
			}
			left = left || more
		}
		if !left && finished == nil {
			st.ReplyFrames(appendRunReply(make([]byte, 0, replySize), st.ID(), p))
			return nil
		}
		select {
		case <-st.Wake():
		case <-finished:
			finished = nil
		case <-st.Done():
			return mux.ErrLost
		}
	}
}

// send sends as much output as the credit allows. more means that output is left because the credit ran out.
func (s *side) send(st *mux.Stream, p *proc.Process) (more bool, err error) {
	for {
		n, _ := s.ring.Available(s.at)
		if base, _, _ := s.ring.Span(); base > s.at {
			return false, fault.New(fault.FailedPrecondition, "%s was run before, and its answer is no longer complete", p.ID)
		}
		if n == 0 {
			return false, nil
		}
		size := st.TryReserve(int(min(n, chunkSize)))
		if size == 0 {
			return true, nil
		}
		from, err := sendPiece(st, s.kind, s.ring, s.at, size)
		if err != nil {
			return false, err
		}
		if from != s.at {
			continue // the ring dropped this output meanwhile: the next round reports it
		}
		s.at += int64(size)
		s.ring.Consume(s.at)
	}
}

// sendPiece sends n bytes of a ring from offset on. Their credit is reserved. from is where they really begin: if that
// is later than offset, nothing was sent.
func sendPiece(st *mux.Stream, kind frame.Kind, ring *proc.Ring, offset int64, n int) (from int64, err error) {
	piece := pieces.Get().(*[frame.HeaderSize + chunkSize]byte)
	defer pieces.Put(piece)
	from, got, _ := ring.Read(offset, piece[frame.HeaderSize:frame.HeaderSize+n])
	if from != offset || got != n {
		st.Unreserve(n)
		return ring.Begin(), nil
	}
	frame.PutHeader(piece[:], kind, st.ID(), n)
	return from, st.SendFrames(piece[:frame.HeaderSize+n])
}
