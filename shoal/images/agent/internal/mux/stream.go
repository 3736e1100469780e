package mux

import (
	"encoding/json"
	"errors"
	"io"
	"math"
	"sync"
	"time"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/frame"
)

// ErrLost means that the client cancelled the stream or that the connection broke.
var ErrLost = errors.New("the stream was cancelled or its connection lost")

// grantAt is how many bytes must be consumed before credit is given back. It is small enough to keep a sender going.
const grantAt = frame.InitialCredit / 4

// joinTo is the size up to which small queued pieces are joined into one.
const joinTo = 64 << 10

// Stream is one request and the data that belongs to it.
type Stream struct {
	id   uint32
	conn *Conn

	mu        sync.Mutex
	wake      chan struct{} // holds one token when data or credit came
	done      chan struct{}
	queue     []frame.Frame
	ended     bool // END came
	cancelled bool // by CANCEL, not by a broken connection
	over      bool // replied, cancelled or lost
	window    int64
	owed      int64
	sendable  int64
	granted   int64
}

func newStream(c *Conn, id uint32) *Stream {
	return &Stream{
		id: id, conn: c, wake: make(chan struct{}, 1), done: make(chan struct{}),
		window: frame.InitialCredit, sendable: frame.InitialCredit,
	}
}

// Done returns a channel that is closed when no client waits for this stream any more, or its handler has returned.
func (s *Stream) Done() <-chan struct{} { return s.done }

// Wake returns a channel that gets a token when credit or data came. Others, such as an output ring, may put one there.
func (s *Stream) Wake() chan struct{} { return s.wake }

// Cancelled reports whether the client cancelled the stream. It is false if the connection broke: the client may come
// back.
func (s *Stream) Cancelled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cancelled
}

// Credit returns how many payload bytes may be sent now, and how many CREDIT frames have granted so far.
func (s *Stream) Credit() (sendable, granted int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sendable, s.granted
}

// Recv returns the next piece of data. It returns io.EOF after END, and ErrLost after CANCEL or if the connection
// broke. The caller gives the piece back with Took once it is consumed.
func (s *Stream) Recv() (frame.Frame, error) {
	for {
		s.mu.Lock()
		if s.over {
			s.mu.Unlock()
			return frame.Frame{}, ErrLost
		}
		if len(s.queue) > 0 {
			f := s.queue[0]
			s.queue[0] = frame.Frame{}
			s.queue = s.queue[1:]
			s.mu.Unlock()
			return f, nil
		}
		ended := s.ended
		s.mu.Unlock()
		if ended {
			return frame.Frame{}, io.EOF
		}
		select {
		case <-s.wake:
		case <-s.done:
			return frame.Frame{}, ErrLost
		}
	}
}

// Took gives the client credit for a consumed piece, and recycles its buffer.
func (s *Stream) Took(f frame.Frame) {
	n := int64(len(f.Payload))
	if f.Owned {
		frame.Recycle(f.Payload)
	}
	s.mu.Lock()
	s.owed += n
	grant := s.owed
	// An empty queue also grants credit, because a sender of small pieces may be waiting for it before it sends more.
	if s.over || s.ended || (grant < grantAt && len(s.queue) > 0) || grant == 0 {
		s.mu.Unlock()
		return
	}
	s.owed = 0
	s.window += grant
	s.mu.Unlock()
	s.conn.out.write(frame.AppendCredit(make([]byte, 0, frame.HeaderSize+4), s.id, uint32(grant)))
}

// Reserve waits until at least one payload byte may be sent, and takes up to max bytes of credit.
func (s *Stream) Reserve(max int) (int, error) {
	for {
		if n := s.TryReserve(max); n > 0 {
			return n, nil
		}
		select {
		case <-s.wake:
		case <-s.done:
			return 0, ErrLost
		}
	}
}

// TryReserve takes up to max bytes of the available credit, which may be none.
func (s *Stream) TryReserve(max int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := int(min(int64(max), s.sendable))
	s.sendable -= int64(n)
	return n
}

// Unreserve gives back unused credit.
func (s *Stream) Unreserve(n int) {
	s.mu.Lock()
	s.sendable += int64(n)
	s.mu.Unlock()
}

// ID returns the stream's number, for callers that build frames themselves.
func (s *Stream) ID() uint32 { return s.id }

// SendFrames writes whole frames that the caller has built and for which it has reserved credit.
func (s *Stream) SendFrames(b []byte) error { return s.conn.out.write(b) }

// Turn waits until no other stream of the connection has the turn, and takes it. done gives it back. Handlers that hold
// much memory until it is written take turns, since only one of them can write at a time.
func (s *Stream) Turn() (done func()) {
	s.conn.turn.Lock()
	return s.conn.turn.Unlock
}

// Event sends an EVENT with v as JSON.
func (s *Stream) Event(v any) error {
	payload, err := json.Marshal(v)
	if err != nil || len(payload) > frame.MaxPayload {
		return fault.New(fault.Internal, "an event could not be encoded")
	}
	select {
	case <-s.done:
		return ErrLost
	default:
	}
	return s.conn.out.write(frame.Append(make([]byte, 0, len(payload)+frame.HeaderSize), frame.Event, s.id, payload))
}

// Reply ends the stream with `{"ok": v}`.
func (s *Stream) Reply(v any) { s.reply(map[string]any{"ok": v}) }

// Fail ends the stream with an error. It does nothing for ErrLost, since no client waits for an answer then.
func (s *Stream) Fail(err error) {
	if errors.Is(err, ErrLost) {
		return
	}
	s.reply(map[string]any{"error": fault.From(err)})
}

func (s *Stream) reply(v any) {
	payload, err := json.Marshal(v)
	if err != nil || len(payload) > frame.MaxPayload {
		payload = []byte(`{"error":{"code":"internal","message":"the answer cannot be encoded"}}`)
	}
	s.ReplyFrames(frame.Append(make([]byte, 0, len(payload)+frame.HeaderSize), frame.Reply, s.id, payload))
}

// ReplyFrames ends the stream with frames built by the caller, the last of which is its REPLY.
func (s *Stream) ReplyFrames(b []byte) {
	// Forget the stream first: once the client has the REPLY, it may count the stream as closed.
	s.conn.forget(s.id)
	s.mu.Lock()
	over := s.over
	s.over = true
	s.mu.Unlock()
	if !over {
		s.conn.out.write(b)
	}
}

// Flush waits until the sent frames have been written, but at most for the given time. Another goroutine may be writing
// them.
func (s *Stream) Flush(patience time.Duration) {
	gone := make(chan struct{})
	go func() {
		s.conn.out.flush()
		close(gone)
	}()
	select {
	case <-gone:
	case <-time.After(patience):
	}
}

// Break ends the whole connection because the client broke the protocol.
func (s *Stream) Break() { s.conn.Close() }

// The connection's reader calls the methods below.

func (s *Stream) push(f frame.Frame) error {
	s.mu.Lock()
	s.window -= int64(len(f.Payload))
	if s.window < 0 || s.ended {
		s.mu.Unlock()
		return frame.ErrMalformed
	}
	if s.over || len(f.Payload) == 0 {
		s.mu.Unlock()
		return nil
	}
	if last := len(s.queue) - 1; f.Owned {
		s.queue = append(s.queue, f)
	} else if last >= 0 && !s.queue[last].Owned && len(s.queue[last].Payload) < joinTo {
		// A queue of many tiny pieces would take far more memory than the credit allows for.
		s.queue[last].Payload = append(s.queue[last].Payload, f.Payload...)
	} else {
		f.Payload = append(make([]byte, 0, len(f.Payload)), f.Payload...)
		s.queue = append(s.queue, f)
	}
	s.mu.Unlock()
	s.notify()
	return nil
}

func (s *Stream) finish() error {
	s.mu.Lock()
	again := s.ended
	s.ended = true
	s.mu.Unlock()
	if again {
		return frame.ErrMalformed
	}
	s.notify()
	return nil
}

func (s *Stream) credit(n uint32) error {
	s.mu.Lock()
	s.sendable += int64(n)
	s.granted += int64(n)
	absurd := s.sendable > math.MaxInt64/4
	s.mu.Unlock()
	if absurd {
		return frame.ErrMalformed
	}
	s.notify()
	return nil
}

func (s *Stream) cancel() {
	s.mu.Lock()
	s.cancelled = true
	s.mu.Unlock()
	s.lose()
}

func (s *Stream) lose() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	s.closeDone()
}

func (s *Stream) closeDone() {
	select {
	case <-s.done:
	default:
		close(s.done)
	}
}

// discard ends the stream once its handler has returned, so that other goroutines stop receiving from it.
func (s *Stream) discard() {
	s.mu.Lock()
	queue := s.queue
	s.queue = nil
	s.over = true
	s.closeDone()
	s.mu.Unlock()
	for _, f := range queue {
		if f.Owned {
			frame.Recycle(f.Payload)
		}
	}
}

func (s *Stream) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
