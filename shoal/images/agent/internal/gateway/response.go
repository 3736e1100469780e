package gateway

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// clientPatience is how long a client may take nothing of its answer, or send nothing of its body, while that is its turn. Tests have less.
var clientPatience = 120 * time.Second

// isStale tells whether a deadline that was set then is to be set again: doing so each time would cost more than most writes may.
func isStale(set, now time.Time) bool { return now.Sub(set) > clientPatience/24 }

// maxInterim bounds the answers such as `103 Early Hints` before the real one.
const maxInterim = 16

// response is an answer on its way to the client: what is written goes out at once, within a deadline that each write renews.
type response struct {
	http.ResponseWriter
	control  *http.ResponseController
	id       string // the request id
	draining bool   // the connection ends with this answer
	abort    func() // ends the request

	renewed time.Time
	left    int64 // bytes of the body that are to come; below zero where nobody knows
	interim int
}

func newResponse(w http.ResponseWriter, in *inbound, draining bool) *response {
	return &response{ResponseWriter: w, control: http.NewResponseController(w), id: in.id, draining: draining, abort: func() {}}
}

func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader passes over interim answers: net/http asks for bodies itself, and many clients take any other for the real one.
func (w *response) WriteHeader(status int) {
	if status < 200 && status != http.StatusSwitchingProtocols {
		if w.interim++; w.interim > maxInterim {
			w.abort()
		}
		return
	}
	h := w.Header()
	h["X-Request-Id"] = []string{w.id}
	if w.draining {
		h["Connection"] = []string{"close"}
	}
	w.left = -1
	if length := h["Content-Length"]; len(length) == 1 {
		if n, err := strconv.ParseInt(length[0], 10, 64); err == nil {
			w.left = n
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(p []byte) (int, error) {
	w.renew()
	n, err := w.ResponseWriter.Write(p)
	if err != nil || w.left < 0 {
		return n, err // of unknown length: httputil.ReverseProxy flushes
	}
	if w.left -= int64(n); w.left > 0 {
		err = w.control.Flush()
	}
	return n, err
}

func (w *response) FlushError() error {
	w.renew()
	return w.control.Flush()
}

func (w *response) renew() {
	if now := time.Now(); isStale(w.renewed, now) {
		w.renewed = now
		w.control.SetWriteDeadline(now.Add(clientPatience))
	}
}

// Hijack hands out the connection of a client whose protocol changes.
func (w *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := w.control.Hijack()
	if err != nil {
		return nil, nil, err
	}
	w.Header().Del("Connection") // the upgrade has its own
	conn.SetDeadline(time.Time{})
	upgraded := &upgradedConn{Conn: conn}
	if n := buffered.Reader.Buffered(); n > 0 {
		ahead, _ := buffered.Reader.Peek(n)
		upgraded.ahead = append([]byte(nil), ahead...)
	}
	return upgraded, buffered, nil
}

// upgradedConn is the connection of a client that no longer speaks HTTP. It holds little memory while nothing comes.
type upgradedConn struct {
	net.Conn
	ahead   []byte // what net/http had read already
	renewed time.Time
}

const idleBuffer = 2 << 10

func (c *upgradedConn) Read(p []byte) (int, error) {
	if len(c.ahead) > 0 {
		n := copy(p, c.ahead)
		c.ahead = c.ahead[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

func (c *upgradedConn) Write(p []byte) (int, error) {
	if now := time.Now(); isStale(c.renewed, now) {
		c.renewed = now
		c.Conn.SetWriteDeadline(now.Add(clientPatience))
	}
	return c.Conn.Write(p)
}

// CloseWrite passes on the end of what the server says.
func (c *upgradedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Conn.Close()
}

// WriteTo and ReadFrom are how io.Copy carries both directions.
func (c *upgradedConn) WriteTo(w io.Writer) (int64, error) {
	return carry(w, struct{ io.Reader }{readerFunc(c.Read)})
}

func (c *upgradedConn) ReadFrom(r io.Reader) (int64, error) {
	return carry(writerFunc(c.Write), r)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// carry copies until the end. It waits with a small buffer, and takes a large one only for what comes in bulk.
func carry(w io.Writer, r io.Reader) (int64, error) {
	small := make([]byte, idleBuffer)
	var total int64
	for {
		n, err := r.Read(small)
		if n > 0 {
			if _, failed := w.Write(small[:n]); failed != nil {
				return total, failed
			}
			total += int64(n)
		}
		if err == nil && n == len(small) {
			var more int64
			more, err = carryBulk(w, r)
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

// carryBulk copies until a read brings less than a large buffer's worth.
func carryBulk(w io.Writer, r io.Reader) (int64, error) {
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
		}
		if err != nil || n < idleBuffer {
			return total, err
		}
	}
}

// bufferPool keeps the buffers that bodies are copied with.
type bufferPool struct{ pool sync.Pool }

const bufferSize = 64 << 10

var buffers = &bufferPool{pool: sync.Pool{New: func() any { return new([bufferSize]byte) }}}

func (p *bufferPool) Get() []byte { return p.pool.Get().(*[bufferSize]byte)[:] }

func (p *bufferPool) Put(b []byte) { p.pool.Put((*[bufferSize]byte)(b)) }
