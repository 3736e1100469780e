package mux

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/frame"
)

// pair serves one end of a pipe with handle and returns the other.
func pair(t *testing.T, handle Handler) (net.Conn, *frame.Decoder, <-chan error) {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { ours.Close() })
	ours.SetDeadline(time.Now().Add(10 * time.Second))
	ended := make(chan error, 1)
	go func() { ended <- New(theirs, frame.NewDecoder(theirs)).Serve(handle) }()
	return ours, frame.NewDecoder(ours), ended
}

func TestAStreamFromOpenToReply(t *testing.T) {
	conn, decoder, _ := pair(t, func(s *Stream, request []byte) {
		var got []byte
		for {
			f, err := s.Recv()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Error(err)
			}
			got = append(got, f.Payload...)
			s.Took(f)
		}
		s.Event("seen")
		s.Reply(string(request) + string(got))
	})
	wire := frame.Append(nil, frame.Open, 7, []byte("request "))
	wire = frame.Append(wire, frame.Data, 7, []byte("da"))
	wire = frame.Append(wire, frame.Data, 7, []byte("ta"))
	go conn.Write(frame.Append(wire, frame.End, 7, nil))
	for {
		f, err := decoder.Next()
		if err != nil {
			t.Fatal(err)
		}
		if f.Kind == frame.Reply {
			if string(f.Payload) != `{"ok":"request data"}` || f.Stream != 7 {
				t.Errorf("%s", f.Payload)
			}
			return
		}
	}
}

func TestCreditHoldsASenderUp(t *testing.T) {
	conn, decoder, _ := pair(t, func(s *Stream, _ []byte) {
		sent := 0
		for sent < 3<<20 {
			n, err := s.Reserve(256 << 10)
			if err != nil {
				return
			}
			s.SendFrames(frame.Append(nil, frame.Data, s.ID(), make([]byte, n)))
			sent += n
		}
		s.Reply(nil)
	})
	conn.Write(frame.Append(nil, frame.Open, 1, nil))
	got := 0
	read := func(until int) {
		for got < until {
			f, err := decoder.Next()
			if err != nil {
				t.Fatal(err)
			}
			got += len(f.Payload)
		}
	}
	read(1 << 20)
	conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := decoder.Next(); err == nil {
		t.Fatal("it sent beyond its credit")
	}
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	go conn.Write(frame.AppendCredit(nil, 1, 2<<20))
	read(3 << 20)
}

func TestCancelAndLossReachTheHandler(t *testing.T) {
	ended := make(chan bool, 2)
	handle := func(s *Stream, _ []byte) {
		_, err := s.Recv()
		if !errors.Is(err, ErrLost) {
			t.Error(err)
		}
		ended <- s.Cancelled()
		s.Fail(err)
	}
	conn, _, served := pair(t, handle)
	conn.Write(frame.Append(frame.Append(nil, frame.Open, 1, nil), frame.Cancel, 1, nil))
	if !<-ended {
		t.Error("a CANCEL is no CANCEL")
	}
	conn.Write(frame.Append(nil, frame.Open, 2, nil))
	conn.Close()
	if <-ended {
		t.Error("a loss is no CANCEL")
	}
	if err := <-served; err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
}

func TestADefectCostsTheConnectionOnly(t *testing.T) {
	conn, decoder, served := pair(t, func(*Stream, []byte) { panic("a defect") })
	go conn.Write(frame.Append(nil, frame.Open, 1, nil))
	f, err := decoder.Next()
	if err != nil || !bytes.Contains(f.Payload, []byte(fault.Internal)) {
		t.Errorf("%v %s", err, f.Payload)
	}
	<-served
}

// slowWriter records each write separately.
type slowWriter struct {
	mu     sync.Mutex
	writes [][]byte
	gate   chan struct{}
}

func (w *slowWriter) Write(p []byte) (int, error) {
	<-w.gate
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writes = append(w.writes, bytes.Clone(p))
	return len(p), nil
}

func TestWhatWaitsGoesOutTogether(t *testing.T) {
	target := &slowWriter{gate: make(chan struct{})}
	var w writer
	w.init(target)
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if err := w.write([]byte("frame")); err != nil {
				t.Error(err)
			}
		})
	}
	for { // until all goroutines but the writing one have queued their frames
		w.mu.Lock()
		waiting := len(w.pending)
		w.mu.Unlock()
		if waiting == 49*5 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	close(target.gate)
	w.flush()
	if len(target.writes) != 2 {
		t.Errorf("%d writes before all had gone out", len(target.writes))
	}
	all.Wait()
	if len(target.writes) != 2 || len(target.writes[0]) != 5 || len(target.writes[1]) != 49*5 {
		t.Errorf("%d writes", len(target.writes))
	}
	w.fail(io.ErrClosedPipe)
	if err := w.write([]byte("late")); err != io.ErrClosedPipe {
		t.Error(err)
	}
}
