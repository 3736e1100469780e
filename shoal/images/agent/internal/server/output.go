package server

import (
	"shoal/agent/internal/fault"
	"shoal/agent/internal/frame"
	"shoal/agent/internal/mux"
	"shoal/agent/internal/proc"
)

type outputRequest struct {
	Op     string `json:"op"`
	ID     string `json:"id"`
	FD     int    `json:"fd"`
	Offset int64  `json:"offset"`
	Tell   bool   `json:"tell"`
	Peek   bool   `json:"peek"`
}

func (s *Server) output(st *mux.Stream, raw []byte) error {
	request, err := decode[outputRequest](raw)
	if err != nil {
		return err
	}
	if !request.Peek {
		s.activity.Change(+1)
		defer s.activity.Change(-1)
	}
	p, err := s.table.Get(request.ID)
	if err != nil {
		return err
	}
	ring := p.Out
	switch request.FD {
	case 1:
	case 2:
		ring = p.Err
	default:
		return fault.Invalid("fd", "%d is neither 1 (stdout) nor 2 (stderr)", request.FD)
	}
	if _, end, _ := ring.Span(); request.Offset < 0 || request.Offset > end {
		return fault.Invalid("offset", "%d is not between 0 and %d, the size of the output so far", request.Offset, end)
	}
	defer ring.Detach(st.Wake())
	if request.Peek {
		at, err := sendHeld(st, ring, request)
		if err != nil {
			return err
		}
		return peek(st, ring, at)
	}
	ring.Attach(st.Wake()) // from now on no output is dropped
	if request.Tell {
		base, end, _ := ring.Span()
		request.Offset = max(request.Offset, base)
		if err := tell(st, "held", request.Offset, end); err != nil {
			return err
		}
	}
	return follow(st, ring, request.Offset)
}

// tell sends an EVENT about a part of a stream.
func tell(st *mux.Stream, what string, from, to int64) error {
	return st.Event(map[string]any{what: [2]int64{from, to}})
}

// follow sends the output of a ring from an offset on, until its end. The caller has attached to the ring. Output for
// which the client has given credit counts as consumed.
func follow(st *mux.Stream, ring *proc.Ring, offset int64) error {
	ring.Consume(offset)
	at, dropped := offset, int64(0)
	for {
		_, granted := st.Credit()
		ring.Consume(min(at, offset+dropped+granted))
		if begin := ring.Begin(); begin > at {
			if err := tell(st, "gap", at, begin); err != nil {
				return err
			}
			dropped += begin - at
			at = begin
		}
		n, closed := ring.Available(at)
		if n == 0 && closed {
			ring.Consume(at)
			st.Reply(map[string]int64{"offset": at})
			return nil
		}
		if size := st.TryReserve(int(min(n, chunkSize))); size > 0 {
			from, err := sendPiece(st, frame.Data, ring, at, size)
			if err != nil {
				return err
			}
			if from == at {
				at += int64(size)
			}
			continue
		}
		select {
		case <-st.Wake():
		case <-st.Done():
			return mux.ErrLost
		}
	}
}

// sendHeld sends a peeking client all that a ring holds now, and returns the offset where that ends. The initial credit
// of a stream is enough for it.
func sendHeld(st *mux.Stream, ring *proc.Ring, request *outputRequest) (end int64, err error) {
	defer st.Turn()()
	select {
	case <-st.Done():
		return 0, mux.ErrLost
	default:
	}
	from, held := ring.Peek(request.Offset, st.Wake())
	end = from + int64(len(held))
	switch {
	case request.Tell:
		err = tell(st, "held", from, end)
	case from > request.Offset:
		err = tell(st, "gap", request.Offset, from)
	}
	piece := pieces.Get().(*[frame.HeaderSize + chunkSize]byte)
	defer pieces.Put(piece)
	for size := 0; err == nil && len(held) > 0; held = held[size:] {
		if size, err = st.Reserve(min(len(held), chunkSize)); err == nil {
			frame.PutHeader(piece[:], frame.Data, st.ID(), size)
			copy(piece[frame.HeaderSize:], held[:size])
			err = st.SendFrames(piece[:frame.HeaderSize+size])
		}
	}
	return end, err
}

// peek sends a peeking client the output that comes into a ring, until its end. A client that was too slow gets a gap
// event, but only once it has credit for the output after the gap: no credit bounds the events themselves.
func peek(st *mux.Stream, ring *proc.Ring, at int64) error {
	for {
		n, closed := ring.Available(at)
		size := st.TryReserve(int(min(n, chunkSize)))
		if size == 0 && (n > 0 || !closed) {
			select {
			case <-st.Wake():
				continue
			case <-st.Done():
				return mux.ErrLost
			}
		}
		end, done, err := sendNext(st, ring, at, size)
		if err != nil {
			return err
		}
		if done {
			st.Reply(map[string]int64{"offset": end})
			return nil
		}
		at = end
	}
}

// sendNext sends up to n bytes of a ring from an offset on, and returns the offset where they end. Their credit is
// reserved. done means that no more output follows.
func sendNext(st *mux.Stream, ring *proc.Ring, at int64, n int) (end int64, done bool, err error) {
	piece := pieces.Get().(*[frame.HeaderSize + chunkSize]byte)
	defer pieces.Put(piece)
	from, got, done := ring.Read(at, piece[frame.HeaderSize:frame.HeaderSize+n])
	st.Unreserve(n - got)
	if from > at {
		err = tell(st, "gap", at, from)
	}
	if err == nil && got > 0 {
		frame.PutHeader(piece[:], frame.Data, st.ID(), got)
		err = st.SendFrames(piece[:frame.HeaderSize+got])
	}
	return from + int64(got), done, err
}
