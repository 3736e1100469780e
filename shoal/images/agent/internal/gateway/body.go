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

// requestBody reads a client's body with a deadline that each read renews.
type requestBody struct {
	io.ReadCloser
	control  *http.ResponseController
	counter  *counter
	renewed  time.Time
	failed   atomic.Bool // the body could not be read
	timedOut atomic.Bool // the reason: the client sent nothing for clientTimeout
}

// wrapBody replaces the request's body by a requestBody, which can be read while the response is being written.
func (in *inbound) wrapBody(w *response, r *http.Request) {
	w.control.EnableFullDuplex()
	in.body = &requestBody{ReadCloser: r.Body, control: w.control, counter: w.counter}
	r.Body = in.body
}

func (b *requestBody) Read(p []byte) (int, error) {
	if now := time.Now(); renewalDue(b.renewed, now) {
		b.renewed = now
		b.control.SetReadDeadline(now.Add(clientTimeout))
	}
	n, err := b.ReadCloser.Read(p)
	b.counter.received.Add(int64(n))
	if err != nil && err != io.EOF {
		b.failed.Store(true)
		b.timedOut.Store(isTimeout(err))
	}
	return n, err
}

// bodyProblem returns a problem if the client's body came too slowly or is malformed, else nil. It aborts the handler
// if the client is gone.
func (in *inbound) bodyProblem(r *http.Request) *problem {
	// This check comes first, because net/http cancels the context of a request whose body cannot be read.
	if in.body != nil && in.body.timedOut.Load() {
		return closeAfter(newProblem(deadlineExceeded, "the request did not arrive in time; send it faster"))
	}
	if r.Context().Err() != nil && !errors.Is(context.Cause(r.Context()), errInvalidResponse) {
		panic(http.ErrAbortHandler)
	}
	if in.body != nil && in.body.failed.Load() {
		return closeAfter(newProblem(fault.InvalidRequest, "the request's body is not encoded as its headers say"))
	}
	return nil
}

// closeAfter closes the connection after the answer: where the next request would begin is unknown.
func closeAfter(p *problem) *problem {
	p.headers = map[string]string{"Connection": "close"}
	return p
}
