package gateway

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// clientTimeout is how long a client may read nothing of its response or send nothing of its body while the gateway
// waits for it. Tests shorten it.
var clientTimeout = 120 * time.Second

// renewalDue reports whether a deadline must be renewed. Renewing it on each write would cost too much.
func renewalDue(set, now time.Time) bool { return now.Sub(set) > clientTimeout/24 }

// maxInterim bounds the interim responses, such as `103 Early Hints`, before the final one.
const maxInterim = 16

// response writes to a client. It flushes each write, with a deadline that each write renews.
type response struct {
	http.ResponseWriter
	control  *http.ResponseController
	id       string // the request id
	draining bool   // close the connection after this response
	abort    func() // cancels the request

	counter *counter
	began   time.Time
	status  int // of the response; 0: not begun

	renewed   time.Time
	remaining int64 // bytes of the body still to be written; -1: unknown
	interim   int   // interim responses so far
}

func newResponse(w http.ResponseWriter, in *inbound, draining bool, counter *counter) *response {
	control := http.NewResponseController(w)
	return &response{
		ResponseWriter: w, control: control, id: in.id, draining: draining, abort: func() {},
		counter: counter, began: time.Now(),
	}
}

func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader drops interim responses. net/http itself sends `100 Continue`, and many clients take any other for the
// final response.
func (w *response) WriteHeader(status int) {
	if status < 200 && status != http.StatusSwitchingProtocols {
		if w.interim++; w.interim > maxInterim {
			w.abort()
		}
		return
	}
	if w.status == 0 {
		w.status = status
		w.counter.observe(time.Since(w.began))
	}
	h := w.Header()
	h["X-Request-Id"] = []string{w.id}
	if w.draining {
		h["Connection"] = []string{"close"}
	}
	w.remaining = -1
	if length := h["Content-Length"]; len(length) == 1 {
		if n, err := strconv.ParseInt(length[0], 10, 64); err == nil {
			w.remaining = n
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(p []byte) (int, error) {
	w.renew()
	n, err := w.ResponseWriter.Write(p)
	w.counter.sent.Add(int64(n))
	if err != nil || w.remaining < 0 {
		return n, err // if the length is unknown, httputil.ReverseProxy flushes
	}
	if w.remaining -= int64(n); w.remaining > 0 {
		err = w.control.Flush()
	}
	return n, err
}

func (w *response) FlushError() error {
	w.renew()
	return w.control.Flush()
}

func (w *response) renew() {
	if now := time.Now(); renewalDue(w.renewed, now) {
		w.renewed = now
		w.control.SetWriteDeadline(now.Add(clientTimeout))
	}
}

// Hijack returns the connection of a client that switches protocols.
func (w *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := w.control.Hijack()
	if err != nil {
		return nil, nil, err
	}
	w.Header().Del("Connection") // the 101 response has its own
	conn.SetDeadline(time.Time{})
	upgraded := &upgradedConn{bufferedConn{Conn: conn, timeout: clientTimeout}, w.counter}
	if n := buffered.Reader.Buffered(); n > 0 {
		early, _ := buffered.Reader.Peek(n)
		upgraded.buffered = append([]byte(nil), early...)
	}
	return upgraded, buffered, nil
}

// upgradedConn is the connection of a client after a protocol switch. It uses little memory while it is idle.
type upgradedConn struct {
	bufferedConn
	counter *counter
}

const smallBufferSize = 2 << 10

// WriteTo and ReadFrom are called by io.Copy, for either direction.
func (c *upgradedConn) WriteTo(w io.Writer) (int64, error) {
	return copyStream(w, c, &c.counter.received)
}

func (c *upgradedConn) ReadFrom(r io.Reader) (int64, error) {
	return copyStream(c, r, &c.counter.sent)
}

// copyStream copies until EOF and counts the bytes as it goes. It waits with a small buffer and uses a large one only
// for bulk data. Unlike io.Copy, it calls Read and Write only.
func copyStream(w io.Writer, r io.Reader, count *atomic.Int64) (int64, error) {
	small := make([]byte, smallBufferSize)
	var total int64
	for {
		n, err := r.Read(small)
		if n > 0 {
			if _, failed := w.Write(small[:n]); failed != nil {
				return total, failed
			}
			total += int64(n)
			count.Add(int64(n))
		}
		if err == nil && n == len(small) {
			var more int64
			more, err = copyBulk(w, r, count)
			total += more
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// copyBulk copies until a read returns less than smallBufferSize.
func copyBulk(w io.Writer, r io.Reader, count *atomic.Int64) (int64, error) {
	buffer := buffers.Get()
	defer buffers.Put(buffer)
	var total int64
	for {
		n, err := r.Read(buffer)
		if n > 0 {
			if _, failed := w.Write(buffer[:n]); failed != nil {
				return total, failed
			}
			total += int64(n)
			count.Add(int64(n))
		}
		if err != nil || n < smallBufferSize {
			return total, err
		}
	}
}

// bufferPool implements httputil.BufferPool.
type bufferPool struct{ pool sync.Pool }

const bufferSize = 64 << 10

var buffers = &bufferPool{pool: sync.Pool{New: func() any { return new([bufferSize]byte) }}}

func (p *bufferPool) Get() []byte { return p.pool.Get().(*[bufferSize]byte)[:] }

func (p *bufferPool) Put(b []byte) { p.pool.Put((*[bufferSize]byte)(b)) }
