package gateway

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"shoal/agent/internal/fault"
)

// requestBody is a body on its way from a client that may be slow.
type requestBody struct {
	io.ReadCloser
	control *http.ResponseController
	renewed time.Time
	stalled atomic.Bool // the client took too long
	broken  atomic.Bool // what it sent is no body
}

// readBody has the request's body read within a deadline that each read renews, also while the answer is being written.
func (in *inbound) readBody(w *response, r *http.Request) {
	w.control.EnableFullDuplex()
	in.body = &requestBody{ReadCloser: r.Body, control: w.control}
	r.Body = in.body
}

func (b *requestBody) Read(p []byte) (int, error) {
	if now := time.Now(); isStale(b.renewed, now) {
		b.renewed = now
		b.control.SetReadDeadline(now.Add(clientPatience))
	}
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		b.broken.Store(true)
		b.stalled.Store(isTimeout(err))
	}
	return n, err
}

// brokenOff returns what to tell a client whose body stalled or is none. It ends the request of one that has gone. Nil where neither is so.
func (in *inbound) brokenOff(r *http.Request) *problem {
	// Looked at first: net/http ends the context of a request whose body could not be read.
	if in.body != nil && in.body.stalled.Load() {
		return last(newProblem(deadlineExceeded, "the request did not arrive in time; send it faster"))
	}
	if r.Context().Err() != nil && !errors.Is(context.Cause(r.Context()), errNoHTTP) {
		panic(http.ErrAbortHandler)
	}
	if in.body != nil && in.body.broken.Load() {
		return last(newProblem(fault.InvalidRequest, "the request's body is not encoded as its headers say"))
	}
	return nil
}

// last has the connection end with the answer: nobody knows where the next request would begin.
func last(p *problem) *problem {
	p.headers = map[string]string{"Connection": "close"}
	return p
}
