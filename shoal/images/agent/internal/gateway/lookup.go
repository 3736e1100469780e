package gateway

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"shoal/agent/internal/fault"
)

const (
	// cacheTTL is how long the gateway uses the API's answer about a tunnel.
	cacheTTL = 2 * time.Second
	// negativeCacheTTL is how long it uses an answer that turns a client away: the tunnel may have been opened to the
	// client a moment ago.
	negativeCacheTTL = 200 * time.Millisecond

	maxCacheEntries   = 4096
	maxPendingLookups = 64 // a client that guesses sandbox ids must not overload the controller
	lookupTimeout     = 15 * time.Second
	// wakeTimeout is how long a request waits for a stopped sandbox to start, and for its server to listen.
	wakeTimeout       = 60 * time.Second
	maxLookupResponse = 64 << 10
)

// lookupKey is what the API is asked about: a port of a sandbox, and whether an API token may use it. With wake, the API
// starts the sandbox where it is stopped, before it answers.
type lookupKey struct {
	sandbox, apiToken string
	port              int
	wake              bool
}

// tunnelInfo is the API's answer about a tunnel.
type tunnelInfo struct {
	Open     bool           `json:"open"`     // there is an http tunnel to the port
	Public   bool           `json:"public"`   // the tunnel needs no token
	Admitted bool           `json:"admitted"` // the API token may use the tunnel
	Refusal  map[string]any `json:"refusal"`  // a problem document: why not admitted, or why there is no tunnel
	Asleep   bool           `json:"asleep"`   // the sandbox is stopped: a request may start it
	Relay    string         `json:"relay"`    // the node's relay: `host:port`, or `tls://FINGERPRINT@host:port`
	Grant    string         `json:"grant"`    // relay token for the port

	requestedAt time.Time
}

func (i *tunnelInfo) isPublic() bool { return i.Open && i.Public }

// refusalProblem says why the API token is not admitted.
func (i *tunnelInfo) refusalProblem() *problem {
	if i.Refusal == nil {
		return newProblem(fault.Unauthenticated,
			"this token opens no such tunnel: it is for another environment, or there is none")
	}
	return problemFromDocument(i.Refusal)
}

// notFoundProblem says why there is no tunnel. It is only for clients with a valid token.
func (i *tunnelInfo) notFoundProblem() *problem {
	if i.Refusal == nil {
		return newProblem(fault.NotFound, "there is no such tunnel")
	}
	return problemFromDocument(i.Refusal)
}

// tunnelLookup asks the API's replicas about tunnels and caches the answers. Concurrent lookups of one key share one
// request.
type tunnelLookup struct {
	replicas *replicas
	client   *http.Transport

	mu      sync.Mutex
	cache   map[lookupKey]*tunnelInfo
	pending map[lookupKey]*pendingLookup
	waking  int // of the pending lookups: those that wait for a start, which takes long
	secret  []byte
}

// pendingLookup is a lookup in progress.
type pendingLookup struct {
	done chan struct{}
	info *tunnelInfo
	err  error
}

func newTunnelLookup(replicas *replicas) *tunnelLookup {
	return &tunnelLookup{
		replicas: replicas, client: replicaTransport(replicas, internalSuffix),
		cache: make(map[lookupKey]*tunnelInfo), pending: make(map[lookupKey]*pendingLookup),
	}
}

// get returns an answer that is younger than maxAge. An error is a problem, or the context's error.
func (l *tunnelLookup) get(ctx context.Context, key lookupKey, maxAge time.Duration) (*tunnelInfo, error) {
	l.mu.Lock()
	if info := l.cache[key]; info != nil && time.Since(info.requestedAt) < maxAge {
		l.mu.Unlock()
		return info, nil
	}
	p := l.pending[key]
	if p == nil {
		asked := len(l.pending) - l.waking
		if key.wake {
			asked = l.waking
		}
		if asked >= maxPendingLookups {
			l.mu.Unlock()
			return nil, newProblem(fault.QuotaExceeded, "too many new tunnels are being looked up at once; try again")
		}
		if key.wake {
			l.waking++
		}
		p = &pendingLookup{done: make(chan struct{})}
		l.pending[key] = p
		go l.fetch(key, p) // not with the caller's context: other callers wait for the answer too
	}
	l.mu.Unlock()
	select {
	case <-p.done:
		return p.info, p.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *tunnelLookup) fetch(key lookupKey, p *pendingLookup) {
	limit := lookupTimeout
	if key.wake {
		limit = wakeTimeout
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	info := &tunnelInfo{requestedAt: time.Now()}
	body := map[string]any{"sandbox": key.sandbox, "port": key.port, "api_token": nil}
	if key.apiToken != "" {
		body["api_token"] = key.apiToken
	}
	if key.wake {
		body["wake"] = true
	}
	err := l.call(ctx, http.MethodPost, "/tunnel", body, info)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		if key.wake {
			info.requestedAt = time.Now()
		}
		l.store(lookupKey{sandbox: key.sandbox, port: key.port, apiToken: key.apiToken}, info)
		p.info = info
	} else {
		p.err = err
	}
	delete(l.pending, key)
	if key.wake {
		l.waking--
	}
	close(p.done)
}

// store puts an answer into the cache. From a full cache it removes expired answers, and others as needed.
func (l *tunnelLookup) store(key lookupKey, info *tunnelInfo) {
	if len(l.cache) >= maxCacheEntries {
		for other, cached := range l.cache {
			if len(l.cache) < maxCacheEntries/2 {
				break
			}
			if len(l.cache) >= maxCacheEntries*3/4 || time.Since(cached.requestedAt) > cacheTTL {
				delete(l.cache, other)
			}
		}
	}
	l.cache[key] = info
}

// signingSecret returns the key that connect tokens are signed with.
func (l *tunnelLookup) signingSecret(ctx context.Context) ([]byte, error) {
	l.mu.Lock()
	secret := l.secret
	l.mu.Unlock()
	if secret != nil {
		return secret, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	var answer struct {
		Secret string `json:"secret"`
	}
	if err := l.call(ctx, http.MethodGet, "/tunnel-secret", nil, &answer); err != nil {
		return nil, err
	}
	secret, err := hex.DecodeString(answer.Secret)
	if err != nil || len(secret) < 16 {
		return nil, newProblem(fault.Internal, "the API returned an invalid secret for connect tokens")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.secret = secret
	return secret, nil
}

// call sends a request to a replica, and to another one if that fails: these requests change nothing. It waits a while
// if there is no replica. An error is a problem.
func (l *tunnelLookup) call(ctx context.Context, method, path string, body, answer any) error {
	until := time.Now().Add(replicaWaitTimeout)
	var tried []*replica
	for attempts := 1; ; {
		chosen := l.replicas.pick(tried)
		if chosen == nil {
			if !l.replicas.wait(ctx, until) {
				return errNoReplica
			}
			tried = nil
			continue
		}
		err := l.callReplica(ctx, chosen, method, path, body, answer)
		if err == nil {
			return nil
		}
		if p, found := asProblem(err); found {
			return p
		}
		if ctx.Err() != nil {
			return newProblem(fault.Unavailable, "the API did not answer in time")
		}
		if !isDialError(err) {
			if attempts++; attempts > maxAttempts {
				return newProblem(fault.Unavailable, "the API did not answer; try again")
			}
		}
		tried = append(tried, chosen)
	}
}

func (l *tunnelLookup) callReplica(ctx context.Context, chosen *replica, method, path string, body, answer any) error {
	var sent io.Reader
	if body != nil {
		line, err := json.Marshal(body)
		if err != nil {
			return err
		}
		sent = bytes.NewReader(line)
	}
	request, err := http.NewRequestWithContext(ctx, method, fmt.Sprintf("http://%s%s", chosen.id, path), sent)
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := l.client.RoundTrip(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxLookupResponse))
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		document := map[string]any{}
		if json.Unmarshal(text, &document) != nil {
			return newProblem(fault.Unavailable, "the API could not answer about this tunnel; try again")
		}
		return problemFromDocument(document)
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return newProblem(fault.Internal, "the API gave an invalid answer about this tunnel")
	}
	return nil
}
