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
	// knownFor is for how long the gateway takes what it heard of a tunnel for true.
	knownFor = 2 * time.Second
	// doubtedFor is the same where somebody would be turned away for it: the tunnel may have been opened to him a moment ago.
	doubtedFor = 200 * time.Millisecond

	mostKnown      = 4096
	mostAsking     = 64 // questions at once: whoever guesses ids must not fill the controller
	answerPatience = 15 * time.Second
	maxAnswer      = 64 << 10
)

// question is what is asked of the API: about a port of a sandbox, and whether an API token may use it.
type question struct {
	sandbox, apiToken string
	port              int
}

// knowledge is the answer to a question.
type knowledge struct {
	Open     bool           `json:"open"`     // there is an http tunnel to the port
	Public   bool           `json:"public"`   // … that needs no token
	Admitted bool           `json:"admitted"` // the API token may use it
	Refusal  map[string]any `json:"refusal"`  // why not, or why there is nothing: a problem document, for who is admitted by a token
	Relay    string         `json:"relay"`    // host:port of the node's relay
	Grant    string         `json:"grant"`    // relay token for the port

	askedAt time.Time
}

// refusal is why the token is not admitted; nothing else is told to who has none.
func (k *knowledge) refusal() *problem {
	if k.Refusal == nil {
		return newProblem(fault.Unauthenticated, "this token opens no such tunnel: it is for another environment, or there is none")
	}
	return told(k.Refusal)
}

// absence is why there is no tunnel, for somebody who may know.
func (k *knowledge) absence() *problem {
	if k.Refusal == nil {
		return newProblem(fault.NotFound, "there is no such tunnel")
	}
	return told(k.Refusal)
}

// oracle asks the API's replicas about tunnels. Callers at one time share one question.
type oracle struct {
	replicas *replicas
	client   *http.Transport

	mu     sync.Mutex
	known  map[question]*knowledge
	asking map[question]*asked
	secret []byte
}

// asked is a question under way.
type asked struct {
	done   chan struct{}
	answer *knowledge
	err    error
}

func newOracle(replicas *replicas) *oracle {
	return &oracle{
		replicas: replicas, client: replicaTransport(replicas, internalSuffix),
		known: make(map[question]*knowledge), asking: make(map[question]*asked),
	}
}

// look returns the answer as it was at most so long ago. An error is a problem.
func (o *oracle) look(ctx context.Context, q question, atMost time.Duration) (*knowledge, error) {
	o.mu.Lock()
	if answer := o.known[q]; answer != nil && time.Since(answer.askedAt) < atMost {
		o.mu.Unlock()
		return answer, nil
	}
	a := o.asking[q]
	if a == nil {
		if len(o.asking) >= mostAsking {
			o.mu.Unlock()
			return nil, newProblem(fault.QuotaExceeded, "too many new tunnels are being looked up at once; try again")
		}
		a = &asked{done: make(chan struct{})}
		o.asking[q] = a
		go o.ask(q, a) // not for one visitor alone: one that goes away does not take the answer from the others
	}
	o.mu.Unlock()
	select {
	case <-a.done:
		return a.answer, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (o *oracle) ask(q question, a *asked) {
	ctx, cancel := context.WithTimeout(context.Background(), answerPatience)
	defer cancel()
	answer := &knowledge{askedAt: time.Now()}
	body := map[string]any{"sandbox": q.sandbox, "port": q.port, "api_token": nil}
	if q.apiToken != "" {
		body["api_token"] = q.apiToken
	}
	err := o.call(ctx, http.MethodPost, "/tunnel", body, answer)
	o.mu.Lock()
	defer o.mu.Unlock()
	if err == nil {
		o.keep(q, answer)
		a.answer = answer
	} else {
		a.err = err
	}
	delete(o.asking, q)
	close(a.done)
}

// keep remembers an answer. Where there are too many, what is stale goes, and of the rest any.
func (o *oracle) keep(q question, answer *knowledge) {
	if len(o.known) >= mostKnown {
		for other, old := range o.known {
			if len(o.known) < mostKnown/2 {
				break
			}
			if len(o.known) >= mostKnown*3/4 || time.Since(old.askedAt) > knownFor {
				delete(o.known, other)
			}
		}
	}
	o.known[q] = answer
}

// signing is what connect tokens are signed with.
func (o *oracle) signing(ctx context.Context) ([]byte, error) {
	o.mu.Lock()
	secret := o.secret
	o.mu.Unlock()
	if secret != nil {
		return secret, nil
	}
	ctx, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	var answer struct {
		Secret string `json:"secret"`
	}
	if err := o.call(ctx, http.MethodGet, "/tunnel-secret", nil, &answer); err != nil {
		return nil, err
	}
	secret, err := hex.DecodeString(answer.Secret)
	if err != nil || len(secret) < 16 {
		return nil, newProblem(fault.Internal, "the API told no proper secret of connect tokens")
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.secret = secret
	return secret, nil
}

// call asks one replica, or another: asking does no harm. It waits a while for one. An error is a problem.
func (o *oracle) call(ctx context.Context, method, path string, body, answer any) error {
	until := time.Now().Add(replicaPatience)
	var tried []*replica
	for tries := 1; ; {
		chosen := o.replicas.pick(tried)
		if chosen == nil {
			if !o.replicas.wait(ctx, until) {
				return errNoReplica
			}
			tried = nil
			continue
		}
		err := o.callOne(ctx, chosen, method, path, body, answer)
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
			if tries++; tries > maxTries {
				return newProblem(fault.Unavailable, "the API did not answer; try again")
			}
		}
		tried = append(tried, chosen)
	}
}

func (o *oracle) callOne(ctx context.Context, chosen *replica, method, path string, body, answer any) error {
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
	response, err := o.client.RoundTrip(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		document := map[string]any{}
		if json.Unmarshal(text, &document) != nil {
			return newProblem(fault.Unavailable, "the API gave no answer about this tunnel; try again")
		}
		return told(document)
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return newProblem(fault.Internal, "the API gave an answer about this tunnel that makes no sense")
	}
	return nil
}
