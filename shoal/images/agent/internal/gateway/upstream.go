package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"time"
)

const (
	replicaPatience   = 2 * time.Second  // how long a request waits for a replica where there is none
	handshakePatience = 60 * time.Second // in which a replica must have answered a WebSocket's handshake
	maxTries          = 3                // of what may be sent again

	// Replicas keep idle connections for longer, so that none ends one on which a request is under way.
	idleReplicaConn  = 30 * time.Second
	maxIdleToReplica = 512
)

var errNoReplica = newProblem("unavailable", "no replica of the API takes requests right now, and nothing was done; try again")

// dialError: no connection was made, so nothing was sent.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

func isDialError(err error) bool {
	var dial *dialError
	return errors.As(err, &dial)
}

// upstream sends each request to the replica that has the fewest, and to another one where that is safe.
type upstream struct {
	replicas *replicas
	plain    *http.Transport
	sockets  *http.Transport // for WebSockets
}

func newUpstream(r *replicas) *upstream {
	sockets := replicaTransport(r, publicSuffix)
	sockets.ResponseHeaderTimeout = handshakePatience
	return &upstream{replicas: r, plain: replicaTransport(r, publicSuffix), sockets: sockets}
}

// replicaTransport speaks HTTP with replicas: a URL's host is a replica's id.
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
		MaxIdleConnsPerHost:    maxIdleToReplica,
		IdleConnTimeout:        idleReplicaConn,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxHeaderBytes,
	}
}

// RoundTrip implements http.RoundTripper. The replica that answered is noted in the request's inbound, which counts it back.
func (u *upstream) RoundTrip(r *http.Request) (*http.Response, error) {
	in := inboundOf(r.Context())
	transport := u.plain
	if in.websocket {
		transport = u.sockets
	}
	body := bodies(r)
	until := time.Now().Add(replicaPatience)
	var tried []*replica
	for tries := 1; ; {
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
			chosen.rest()
		} else if tries++; tries > maxTries || !mayRepeat(r) {
			return nil, err
		}
		tried = append(tried, chosen)
	}
}

// bodies returns what gives the request's body for each try. One that is not in memory is the same each time, for it goes on only as long as
// nothing was read of it: where no connection was made. A try never closes it: whoever made the request does.
func bodies(r *http.Request) func() io.ReadCloser {
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

// mayRepeat tells whether a request does no harm that was carried out already, and can be sent again.
func mayRepeat(r *http.Request) bool {
	if r.Body != nil && r.Body != http.NoBody && r.GetBody == nil {
		return false
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return true
	}
	return r.Header.Get("Idempotency-Key") != ""
}
