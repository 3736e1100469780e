package proc

import (
	"errors"
	"os"
	"sync"
	"time"

	"shoal/agent/internal/fault"
)

const endOfTransmission = 4

// Stdin is the standard input of a process, addressed by offset, so that a client that lost its connection can resume.
// There is one writer at a time: a new one replaces the old one.
type Stdin struct {
	turn  sync.Mutex // held during a write
	mu    sync.Mutex // guards the fields below
	file  *os.File
	pty   bool
	has   int64
	last  byte
	ended bool // End was carried out
	shut  bool // the process has ended or closed it
	owner int
}

// ErrSuperseded means that another writer took over, or that this writer's client went away.
var ErrSuperseded = errors.New("another writer took over this standard input")

func closedStdin() error {
	return fault.New(
		fault.FailedPrecondition, "the process has closed its standard input, or has ended: nothing more can be written",
	)
}

// Writer writes to a Stdin for one client. It needs no close: the input stays open for the next writer.
type Writer struct {
	s      *Stdin
	number int
	offset int64 // of the next byte that the client sends
}

// Open makes the caller the only writer. offset is the offset of the first byte that its client will send. has is how
// many bytes have arrived so far.
func (s *Stdin) Open(offset int64) (w *Writer, has int64, err error) {
	s.mu.Lock()
	s.owner++
	number := s.owner
	s.file.SetWriteDeadline(time.Unix(1, 0)) // interrupts a writer that waits for the process to read
	s.mu.Unlock()
	s.turn.Lock() // waits until the old writer has recorded how much it wrote
	defer s.turn.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.owner != number:
		return nil, 0, ErrSuperseded
	case offset > s.has:
		return nil, 0, fault.Invalid("offset", "%d is beyond the %d bytes that arrived: send from there", offset, s.has)
	case s.shut && !s.ended:
		return nil, 0, closedStdin()
	}
	s.file.SetWriteDeadline(time.Time{})
	return &Writer{s, number, offset}, s.has, nil
}

// Write writes the client's next bytes, and skips those that the process already has.
func (w *Writer) Write(p []byte) error {
	s := w.s
	s.turn.Lock()
	defer s.turn.Unlock()
	s.mu.Lock()
	if s.owner != w.number {
		s.mu.Unlock()
		return ErrSuperseded
	}
	skip := min(max(0, s.has-w.offset), int64(len(p)))
	w.offset += int64(len(p))
	p = p[skip:]
	closed := s.ended || s.shut
	s.mu.Unlock()
	if len(p) == 0 {
		return nil
	}
	if closed {
		return closedStdin()
	}
	n, err := s.file.Write(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.has += int64(n)
	if n > 0 {
		s.last = p[n-1]
	}
	if err == nil {
		return nil
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ErrSuperseded
	}
	s.shut = true
	return closedStdin()
}

// End closes the standard input (for a terminal it sends EOT) and returns how many bytes the process got.
func (w *Writer) End() (int64, error) {
	s := w.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owner != w.number {
		return 0, ErrSuperseded
	}
	if s.ended || s.shut {
		return s.has, nil
	}
	s.ended = true
	if !s.pty {
		s.file.Close()
		return s.has, nil
	}
	end := []byte{endOfTransmission}
	if s.has > 0 && s.last != '\n' {
		end = append(end, endOfTransmission) // the first EOT only ends the unfinished line
	}
	s.file.Write(end)
	return s.has, nil
}

// Interrupt makes a waiting Write return.
func (w *Writer) Interrupt() {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if w.s.owner == w.number {
		w.s.file.SetWriteDeadline(time.Unix(1, 0))
	}
}

// stop closes the input for good because the process has ended.
func (s *Stdin) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shut = true
	if s.pty { // the output pump closes the terminal
		s.file.SetWriteDeadline(time.Unix(1, 0))
		return
	}
	s.file.Close()
}
