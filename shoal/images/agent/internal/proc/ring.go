package proc

import "sync"

const (
	// RingSize is how much output of one stream is kept for its reader.
	RingSize = 1 << 20
	// historySize is how much already consumed output is kept along, for a second reader.
	historySize = 64 << 10
	firstSize   = 4 << 10
)

// Ring holds the newest part of one output stream, addressed by offsets from the stream's begin.
//
// base ≤ consumed ≤ end. What lies between consumed and end is never dropped, unless nobody reads a `tail` ring: a full
// ring makes Append wait, so the pipe behind it fills and the process blocks. Who only peeks does not count as a reader.
type Ring struct {
	mu        sync.Mutex
	room      sync.Cond
	buf       []byte
	base      int64
	end       int64
	consumed  int64
	limit     int64 // bytes of the stream that are kept at all; -1: no limit
	tail      bool
	readers   map[chan<- struct{}]struct{}
	peekers   map[chan<- struct{}]struct{}
	closed    bool // no more will come
	abandoned bool // what comes is dropped
	truncated bool
	waiting   bool // Append waits for room
	waits     int  // how often it did
}

// NewRing makes an empty ring. limit bounds the stream (-1: not); with tail the oldest is dropped while nobody reads.
func NewRing(limit int64, tail bool) *Ring {
	r := &Ring{limit: limit, tail: tail}
	r.room.L = &r.mu
	return r
}

// Append adds output, waiting for room where there is none.
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

// put copies p behind what is there; makeRoom has made sure that it may.
func (r *Ring) put(p []byte) {
	for len(p) > 0 {
		n := copy(r.buf[int(r.end%int64(len(r.buf))):], p[:min(len(p), len(r.buf))])
		r.end += int64(n)
		p = p[n:]
	}
}

// makeRoom returns how many of n bytes fit now, growing the buffer or dropping what may be dropped.
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

// resize moves what is held into a buffer of the given size, dropping the oldest where it does not fit.
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

// copyTo copies what lies behind offset, which must be held, and returns how much that is.
func (r *Ring) copyTo(p []byte, offset int64) int {
	p = p[:max(0, min(int64(len(p)), r.end-offset))]
	n := 0
	for n < len(p) {
		at := int((offset + int64(n)) % int64(len(r.buf)))
		n += copy(p[n:], r.buf[at:])
	}
	return n
}

// Read copies what there is from offset on. from is where it begins: later than offset where the ring had to drop.
// done: the stream has ended, and nothing lies behind what was returned.
func (r *Ring) Read(offset int64, p []byte) (from int64, n int, done bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	from = max(offset, r.base)
	n = r.copyTo(p, from)
	return from, n, r.closed && from+int64(n) >= r.end
}

// Available returns how many bytes lie behind offset, and whether no more will come.
func (r *Ring) Available(offset int64) (n int64, closed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return max(0, r.end-max(offset, r.base)), r.closed
}

// Consume tells that everything before offset was taken by a reader.
func (r *Ring) Consume(offset int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if offset = min(offset, r.end); offset > r.consumed {
		r.consumed = offset
		r.room.Broadcast()
	}
}

// Attach makes wake get a token whenever output comes. End it with Detach.
func (r *Ring) Attach(wake chan<- struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.readers == nil {
		r.readers = make(map[chan<- struct{}]struct{}, 1)
	}
	r.readers[wake] = struct{}{}
}

// Peek attaches who only looks: nobody waits for it, and it must not Consume. It returns all that is held from offset on, and
// where that begins: one who began to read the oldest byte would be overtaken at once by a process that writes fast.
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
	r.room.Broadcast() // a tail ring may drop from now on
}

// Close tells that no more will come.
func (r *Ring) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.compact()
	r.notify()
}

// compact gives back what a closed ring's buffer has too much.
func (r *Ring) compact() {
	if held := int(r.end - r.base); r.closed && len(r.buf) > 2*held {
		if held == 0 {
			r.buf = nil
			return
		}
		r.resize(held)
	}
}

// Abandon drops what comes from now on, so that whoever writes is never held up.
func (r *Ring) Abandon() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.abandoned = true
	r.room.Broadcast()
}

// Drop frees all that is held; readers see a gap.
func (r *Ring) Drop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.abandoned = true
	r.base, r.consumed, r.buf = r.end, r.end, nil
	r.room.Broadcast()
	r.notify()
}

// Span returns the offsets of what is held, and how much of it nobody consumed yet.
func (r *Ring) Span() (base, end, unread int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.base, r.end, r.end - r.consumed
}

// Truncated tells whether the limit made it drop something.
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

// Stalls tells whether a full ring holds its writer up now, and how often one did so far.
func (r *Ring) Stalls() (now bool, count int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.waiting, r.waits
}

// Begin is the offset of the oldest byte held.
func (r *Ring) Begin() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.base
}
