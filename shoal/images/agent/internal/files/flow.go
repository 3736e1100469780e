package files

import (
	"strconv"

	"shoal/agent/internal/frame"
	"shoal/agent/internal/mux"
)

// appendSize appends a REPLY with a size to the frames in b.
func appendSize(b []byte, stream uint32, size int64) []byte {
	var payload [64]byte
	p := append(payload[:0], `{"ok":{"size":`...)
	p = strconv.AppendInt(p, size, 10)
	return frame.Append(b, frame.Reply, stream, append(p, "}}"...))
}

// sender is an io.Writer that sends its bytes in large DATA frames.
type sender struct {
	st   *mux.Stream
	as   *actor
	buf  []byte // room for a header, followed by the bytes to send
	held *[]byte
	n    int
}

func newSender(st *mux.Stream, as *actor) *sender {
	held := buffers.Get().(*[]byte)
	return &sender{st: st, as: as, held: held, buf: *held}
}

func (s *sender) close() { buffers.Put(s.held) }

func (s *sender) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		if s.n == chunk {
			if err := s.flush(); err != nil {
				return written, err
			}
		}
		n := copy(s.buf[frame.HeaderSize+s.n:frame.HeaderSize+chunk], p)
		s.n += n
		written += n
		p = p[n:]
	}
	return written, nil
}

// flush sends all buffered bytes. If the credit allows only a part, the next header overwrites bytes that were sent.
func (s *sender) flush() error { return s.as.outside(s.send) }

func (s *sender) send() error {
	for sent := 0; sent < s.n; {
		room, err := s.st.Reserve(s.n - sent)
		if err != nil {
			return err
		}
		frame.PutHeader(s.buf[sent:], frame.Data, s.st.ID(), room)
		if err := s.st.SendFrames(s.buf[sent : sent+frame.HeaderSize+room]); err != nil {
			return mux.ErrLost
		}
		sent += room
	}
	s.n = 0
	return nil
}

// receiver is an io.Reader of the stream's DATA. It returns io.EOF after END, and mux.ErrLost after CANCEL.
type receiver struct {
	st   *mux.Stream
	as   *actor
	held frame.Frame
	rest []byte
}

func (r *receiver) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if err := r.as.outside(r.receive); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (r *receiver) receive() error {
	r.release()
	f, err := r.st.Recv()
	if err == nil {
		r.held, r.rest = f, f.Payload
	}
	return err
}

// drain drops the remaining data up to END, so that the client can finish sending.
func (r *receiver) drain() error {
	r.release()
	for {
		f, err := r.st.Recv()
		if err != nil {
			return err
		}
		r.st.Took(f)
	}
}

func (r *receiver) release() {
	if r.held.Payload != nil {
		r.st.Took(r.held)
	}
	r.held, r.rest = frame.Frame{}, nil
}
