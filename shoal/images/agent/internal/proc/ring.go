package proc

import "sync"

const (
	// RingSize is how many bytes of unread output of one stream are kept.
	RingSize = 1 << 20
	// historySize is how many bytes of consumed output are kept for a second reader.
	historySize = 64 << 10
	firstSize   = 4 << 10
)

// Ring holds the newest part of one output stream, addressed by offsets from the beginning of the stream.
//
// base ≤ consumed ≤ end. Bytes between consumed and end are never dropped, except in a `tail` ring that has no reader.
// A full ring makes Append wait, so the pipe behind it fills and the process blocks. A peeker does not count as a
// reader.
type Ring struct {
	mu        sync.Mutex
	room      sync.Cond
	buf       []byte
	base      int64
	end       int64
	consumed  int64
	limit     int64 // later bytes of the stream are discarded; -1: no limit
	tail      bool
	readers   map[chan<- struct{}]struct{}
	peekers   map[chan<- struct{}]struct{}
	closed    bool // no more output will come
	abandoned bool // further output is dropped
	truncated bool
	waiting   bool // Append is waiting for room
	waits     int  // how often Append has waited
}

// NewRing makes an empty ring. limit bounds the stream in bytes (-1: no limit). With tail, the oldest bytes are dropped
// while there is no reader.
func NewRing(limit int64, tail bool) *Ring {
	r := &Ring{limit: limit, tail: tail}
	r.room.L = &r.mu
	return r
}

// Append adds output. It waits while the ring is full.
func (r *Ring) Append(p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(p) > 0 {
		if r.abandoned {
			return
		}
		if r.limit >= 0 && r.end+int64(len(p)) > r.limit {
			r.truncated = true
			p = p[:max(0, r.limit-r.end)]
			continue
		}
		n := r.makeRoom(len(p))
		if n == 0 {
			r.waits++
			r.waiting = true
			r.room.Wait()
			r.waiting = false
			continue
		}
		r.put(p[:n])
		p = p[n:]
		r.notify()
	}
}

// put copies p behind the bytes in the ring. The caller has made room for it.
func (r *Ring) put(p []byte) {
	for len(p) > 0 {
		n := copy(r.buf[int(r.end%int64(len(r.buf))):], p[:min(len(p), len(r.buf))])
		r.end += int64(n)
		p = p[n:]
	}
}

// makeRoom returns how many of n bytes fit now. It grows the buffer, and drops bytes that may be dropped.
func (r *Ring) makeRoom(n int) int {
	need := r.end - r.consumed + int64(n)
	if r.tail && len(r.readers) == 0 && need > RingSize {
		r.consumed = min(r.end, r.consumed+need-RingSize)
		need = r.end - r.consumed + int64(n)
	}
	want := max(min(r.end-r.base+int64(n), historySize), min(need, RingSize))
	if want > int64(len(r.buf)) {
		r.grow(int(want))
	}
	n = int(min(int64(n), int64(len(r.buf))-(r.end-r.consumed)))
	r.base = max(r.base, r.end+int64(n)-int64(len(r.buf)))
	return n
}

func (r *Ring) grow(want int) {
	size := max(len(r.buf), firstSize)
	for size < want {
		size *= 2
	}
	r.resize(size)
}

// resize moves the bytes held into a buffer of the given size, and drops the oldest that do not fit.
func (r *Ring) resize(size int) {
	held := make([]byte, min(r.end-r.base, int64(size)))
	r.base = r.end - int64(len(held))
	r.copyTo(held, r.base)
	r.buf = make([]byte, size)
	end := r.end
	r.end = r.base
	r.put(held)
	r.end = end
}

// copyTo copies the bytes from offset on and returns how many there were. The offset must be in the ring.
func (r *Ring) copyTo(p []byte, offset int64) int {
	p = p[:max(0, min(int64(len(p)), r.end-offset))]
	n := 0
	for n < len(p) {
		at := int((offset + int64(n)) % int64(len(r.buf)))
		n += copy(p[n:], r.buf[at:])
	}
	return n
}

// Read copies the bytes from offset on. from is the offset of the first one: later than offset if the ring has dropped
// bytes. done means that the stream has ended and no bytes follow those returned.
func (r *Ring) Read(offset int64, p []byte) (from int64, n int, done bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	from = max(offset, r.base)
	n = r.copyTo(p, from)
	return from, n, r.closed && from+int64(n) >= r.end
}

// Available returns how many bytes follow offset, and whether the stream is closed.
func (r *Ring) Available(offset int64) (n int64, closed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return max(0, r.end-max(offset, r.base)), r.closed
}

// Consume marks all bytes before offset as read.
func (r *Ring) Consume(offset int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if offset = min(offset, r.end); offset > r.consumed {
		r.consumed = offset
		r.room.Broadcast()
	}
}

// Attach adds a reader: wake gets a token whenever output comes. Detach ends it.
func (r *Ring) Attach(wake chan<- struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.readers == nil {
		r.readers = make(map[chan<- struct{}]struct{}, 1)
	}
	r.readers[wake] = struct{}{}
}

// Peek adds a peeker: the process never waits for it, and it must not call Consume. It returns a copy of all bytes held
// from offset on, and where they begin. Without the copy, a process that writes fast would overtake a peeker that
// starts at the oldest byte.
func (r *Ring) Peek(offset int64, wake chan<- struct{}) (from int64, held []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.peekers == nil {
		r.peekers = make(map[chan<- struct{}]struct{}, 1)
	}
	r.peekers[wake] = struct{}{}
	from = max(offset, r.base)
	held = make([]byte, max(0, r.end-from))
	r.copyTo(held, from)
	return from, held
}

// Detach ends Attach or Peek.
func (r *Ring) Detach(wake chan<- struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.readers, wake)
	delete(r.peekers, wake)
	r.room.Broadcast() // a tail ring without readers may drop bytes
}

// Close marks the end of the stream.
func (r *Ring) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.compact()
	r.notify()
}

// compact frees the unused part of a closed ring's buffer.
func (r *Ring) compact() {
	if held := int(r.end - r.base); r.closed && len(r.buf) > 2*held {
		if held == 0 {
			r.buf = nil
			return
		}
		r.resize(held)
	}
}

// Abandon drops all further output, so that the process never blocks.
func (r *Ring) Abandon() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.abandoned = true
	r.room.Broadcast()
}

// Drop frees all bytes held. Readers see a gap.
func (r *Ring) Drop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.abandoned = true
	r.base, r.consumed, r.buf = r.end, r.end, nil
	r.room.Broadcast()
	r.notify()
}

// Span returns the offsets of the bytes held, and how many of them are unread.
func (r *Ring) Span() (base, end, unread int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.base, r.end, r.end - r.consumed
}

// Truncated reports whether output was discarded because of the limit.
func (r *Ring) Truncated() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.truncated
}

func (r *Ring) notify() {
	for _, waiting := range [...]map[chan<- struct{}]struct{}{r.readers, r.peekers} {
		for wake := range waiting {
			select {
			case wake <- struct{}{}:
			default:
			}
		}
	}
}

// Stalls reports whether Append is waiting for room now, and how often it has waited so far.
func (r *Ring) Stalls() (now bool, count int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.waiting, r.waits
}

// Begin returns the offset of the oldest byte held.
func (r *Ring) Begin() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.base
}
