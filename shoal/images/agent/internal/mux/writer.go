package mux

import (
	"io"
	"sync"
)

// pendingHigh is how many bytes may be queued for the writing goroutine before the others have to wait.
const pendingHigh = 256 << 10

// writer lets many goroutines write whole frames. The first one writes its own bytes without a copy. The bytes of the
// others are queued meanwhile and follow in one write.
type writer struct {
	w       io.Writer
	mu      sync.Mutex
	room    sync.Cond
	busy    bool
	pending []byte
	spare   []byte
	err     error
}

func (w *writer) init(out io.Writer) {
	w.w = out
	w.room.L = &w.mu
}

// write sends b, which consists of whole frames. The caller may use b again once write returns.
func (w *writer) write(b []byte) error {
	w.mu.Lock()
	for w.err == nil && w.busy && len(w.pending)+len(b) > pendingHigh {
		w.room.Wait()
	}
	if w.err != nil || w.busy {
		if w.err == nil {
			w.pending = append(w.pending, b...)
		}
		err := w.err
		w.mu.Unlock()
		return err
	}
	w.busy = true
	w.mu.Unlock()
	_, err := w.w.Write(b)
	w.mu.Lock()
	for err == nil && w.err == nil && len(w.pending) > 0 {
		batch := w.pending
		w.pending = w.spare[:0]
		w.mu.Unlock()
		_, err = w.w.Write(batch)
		w.mu.Lock()
		w.spare = batch
		if cap(batch) > pendingHigh/4 {
			w.spare = nil // do not keep the large buffer of a burst
		}
		w.room.Broadcast()
	}
	w.busy = false
	if w.err == nil {
		w.err = err
	}
	err = w.err
	w.room.Broadcast()
	w.mu.Unlock()
	return err
}

// flush waits until all queued frames have been written.
func (w *writer) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.err == nil && (w.busy || len(w.pending) > 0) {
		w.room.Wait()
	}
}

func (w *writer) fail(err error) {
	w.mu.Lock()
	if w.err == nil {
		w.err = err
	}
	w.room.Broadcast()
	w.mu.Unlock()
}
