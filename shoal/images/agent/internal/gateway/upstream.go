package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	"shoal/agent/internal/fault"
)

const (
	replicaWaitTimeout = 2 * time.Second  // how long a request waits if there is no replica
	handshakeTimeout   = 60 * time.Second // for a replica's answer to a WebSocket handshake
	maxAttempts        = 3                // of a request that can be retried

	// Replicas keep idle connections longer, so that they do not close one just when the gateway sends a request on it.
	replicaIdleTimeout = 30 * time.Second
	maxIdlePerReplica  = 512
)

var errNoReplica = newProblem(fault.Unavailable,
	"no replica of the API takes requests right now; nothing was done; try again")

// dialError means that no connection was made, so nothing was sent.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

func isDialError(err error) bool {
	var dial *dialError
	return errors.As(err, &dial)
}

// upstream sends each request to the replica with the fewest requests, and retries on another one if that is safe.
type upstream struct {
	replicas   *replicas
	plain      *http.Transport
	webSockets *http.Transport
}

func newUpstream(r *replicas) *upstream {
	webSockets := replicaTransport(r, publicSuffix)
	webSockets.ResponseHeaderTimeout = handshakeTimeout
	return &upstream{replicas: r, plain: replicaTransport(r, publicSuffix), webSockets: webSockets}
}

// replicaTransport sends requests to replicas. The host of a URL is the id of a replica.
func replicaTransport(r *replicas, suffix string) *http.Transport {
	return &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			id, _, err := net.SplitHostPort(address)
			if err != nil {
				return nil, &dialError{err}
			}
			var dialer net.Dialer
			conn, err := dialer.DialContext(ctx, "unix", r.path(id, suffix))
			if err != nil {
				return nil, &dialError{err}
			}
			return conn, nil
		},
		DisableCompression:     true,
		MaxIdleConnsPerHost:    maxIdlePerReplica,
		IdleConnTimeout:        replicaIdleTimeout,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxHeaderBytes,
	}
}

// RoundTrip implements http.RoundTripper. It sets the inbound's replica to the one that answered. The caller decrements
// that replica's count of outstanding requests when the response is done.
func (u *upstream) RoundTrip(r *http.Request) (*http.Response, error) {
	in := inboundFrom(r.Context())
	transport := u.plain
	if in.websocket {
		transport = u.webSockets
	}
	body := bodyPerAttempt(r)
	until := time.Now().Add(replicaWaitTimeout)
	var tried []*replica
	for attempts := 1; ; {
		chosen := u.replicas.pick(tried)
		if chosen == nil {
			if !u.replicas.wait(r.Context(), until) {
				return nil, errNoReplica
			}
			tried = nil
			continue
		}
		r.Body = body()
		r.URL.Host = chosen.id
		chosen.outstanding.Add(1)
		response, err := transport.RoundTrip(r)
		if err == nil {
			in.replica = chosen
			return response, nil
		}
		chosen.outstanding.Add(-1)
		if r.Context().Err() != nil {
			return nil, err
		}
		if isDialError(err) {
			chosen.backOff()
		} else if attempts++; attempts > maxAttempts || !canRetry(r) {
			return nil, err
		}
		tried = append(tried, chosen)
	}
}

// bodyPerAttempt returns a function that returns the request's body for each attempt. A body that is not in memory is
// the same each time: it is used again only after a dial error, when nothing was read. RoundTrip does not close the
// body; whoever made the request does.
func bodyPerAttempt(r *http.Request) func() io.ReadCloser {
	original := r.Body
	if original == nil || original == http.NoBody {
		return func() io.ReadCloser { return nil }
	}
	return func() io.ReadCloser {
		if r.GetBody != nil {
			if body, err := r.GetBody(); err == nil {
				return body
			}
		}
		return io.NopCloser(original)
	}
}

// canRetry reports whether carrying out the request twice does no harm, and its body can be sent again.
func canRetry(r *http.Request) bool {
	if r.Body != nil && r.Body != http.NoBody && r.GetBody == nil {
		return false
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return true
	}
	return r.Header.Get("Idempotency-Key") != ""
}
