// Package mux is the agent's side of one authenticated connection: many streams, flow control, and few system calls.
//
// One goroutine reads, and each request has a goroutine of its own. A goroutine that has something to send writes it
// itself, together with what others have queued meanwhile.
package mux

import (
	"errors"
	"io"
	"log"
	"runtime/debug"
	"sync"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/frame"
)

// MaxStreams is how many streams may be open on one connection.
const MaxStreams = 4096

// Handler answers one request. It runs in a goroutine of its own and must end the stream with Reply or Fail,
// unless the stream was cancelled. It owns the request's bytes.
type Handler func(s *Stream, request []byte)

// Conn is one connection and its open streams.
type Conn struct {
	rw      io.ReadWriteCloser
	dec     *frame.Decoder
	out     writer
	turn    sync.Mutex
	mu      sync.Mutex
	streams map[uint32]*Stream
	closed  bool
}

// New makes a connection that writes to rw and reads its frames from dec.
func New(rw io.ReadWriteCloser, dec *frame.Decoder) *Conn {
	c := &Conn{rw: rw, dec: dec, streams: make(map[uint32]*Stream)}
	c.out.init(rw)
	return c
}

// Serve reads until the connection ends, and returns the reason: nil if the other side closed it between two frames.
// When it returns, the connection is closed and every stream has ended.
func (c *Conn) Serve(handle Handler) error {
	err := c.read(handle)
	c.Close()
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// Close ends the connection and all its streams.
func (c *Conn) Close() {
	c.mu.Lock()
	streams := c.streams
	c.streams = nil
	closed := c.closed
	c.closed = true
	c.mu.Unlock()
	if closed {
		return
	}
	c.rw.Close()
	c.out.fail(io.ErrClosedPipe)
	for _, s := range streams {
		s.lose()
	}
}

func (c *Conn) read(handle Handler) error {
	for {
		f, err := c.dec.Next()
		if err != nil {
			return err
		}
		switch f.Kind {
		case frame.Open:
			err = c.open(f, handle)
		case frame.Data:
			if s := c.stream(f.Stream); s != nil {
				err = s.push(f)
			} else if f.Owned {
				frame.Recycle(f.Payload)
			}
		case frame.End:
			if s := c.stream(f.Stream); s != nil {
				err = s.finish()
			}
		case frame.Credit:
			var n uint32
			if n, err = frame.ParseCredit(f.Payload); err == nil {
				if s := c.stream(f.Stream); s != nil {
					err = s.credit(n)
				}
			}
		case frame.Cancel:
			if s := c.forget(f.Stream); s != nil {
				s.cancel()
			}
		default: // HELLO may not come again, and only the agent sends the other kinds
			err = frame.ErrMalformed
		}
		if err != nil {
			return err
		}
	}
}

func (c *Conn) open(f frame.Frame, handle Handler) error {
	request := f.Payload
	if !f.Owned {
		request = append(make([]byte, 0, len(f.Payload)), f.Payload...)
	}
	s := newStream(c, f.Stream)
	c.mu.Lock()
	_, taken := c.streams[f.Stream]
	full := len(c.streams) >= MaxStreams
	closed := c.closed
	if !taken && !full && !closed {
		c.streams[f.Stream] = s
	}
	c.mu.Unlock()
	if closed {
		return io.ErrClosedPipe
	}
	if taken {
		return frame.ErrMalformed
	}
	if full {
		s.Fail(fault.New(fault.QuotaExceeded, "%d requests are open on this connection: wait for some to end", MaxStreams))
		return nil
	}
	go c.run(s, request, handle)
	return nil
}

// run calls the handler. A panic in it is a bug: it ends this connection, but not the sandbox.
func (c *Conn) run(s *Stream, request []byte, handle Handler) {
	defer func() {
		if reason := recover(); reason != nil {
			log.Printf("shoal: bug in the agent: a request panicked: %v\n%s", reason, debug.Stack())
			s.Fail(fault.New(fault.Internal, "a bug in the agent: see the container's log"))
			c.Close()
		}
	}()
	handle(s, request)
	s.discard()
}

func (c *Conn) stream(id uint32) *Stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.streams[id]
}

func (c *Conn) forget(id uint32) *Stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.streams[id]
	delete(c.streams, id)
	return s
}
