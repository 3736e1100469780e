package gateway

import (
	"context"
	"errors"
	"time"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/token"
)

// admission is a request that was let in. token is the connect token that did, "" where none was needed; expires is its end.
type admission struct {
	knowledge *knowledge
	token     string
	expires   time.Time
}

// gatekeeper decides who may go through a tunnel: public ones everybody, private ones who holds a connect token for them or an API token for
// their environment. To whoever holds neither, a sandbox that is not there, one without tunnels and one whose tunnels are private look the same.
type gatekeeper struct {
	oracle *oracle
}

// admit returns how the request was let in; an error is a problem, or the context's.
func (g *gatekeeper) admit(ctx context.Context, t *tunnelRequest) (admission, error) {
	found, err := g.oracle.look(ctx, t.question(), knownFor)
	if err == nil && !(found.Open && found.Public) && t.offered.none() {
		found, err = g.oracle.look(ctx, t.question(), doubtedFor)
	}
	if err != nil {
		return admission{}, err
	}
	if found.Open && found.Public {
		return g.byLink(ctx, t, found), nil
	}
	let, err := g.connectToken(ctx, t)
	if err != nil {
		return admission{}, err
	}
	if let.token == "" {
		return g.byAPIToken(ctx, t)
	}
	if let.knowledge, err = g.opened(ctx, t.question(), found); err != nil {
		return admission{}, err
	}
	return let, nil
}

// still returns why a request that was let in would be so no longer; nil where it would, or nobody knows at the moment. The connect token that
// let it in may have expired meanwhile.
func (g *gatekeeper) still(ctx context.Context, t *tunnelRequest, let admission) error {
	var err error
	if let.token == "" {
		_, err = g.admit(ctx, t)
	} else if found, failed := g.oracle.look(ctx, t.question(), knownFor); failed != nil {
		err = failed
	} else if !found.Open {
		err = found.absence()
	}
	if p, is := asProblem(err); is && p.code != fault.Unavailable && p.code != fault.QuotaExceeded && p.code != fault.Internal {
		return p
	}
	return nil
}

// opened looks again where there is no tunnel: it may have been opened just now.
func (g *gatekeeper) opened(ctx context.Context, q question, found *knowledge) (*knowledge, error) {
	if found.Open {
		return found, nil
	}
	found, err := g.oracle.look(ctx, q, 0)
	if err == nil && !found.Open {
		err = found.absence()
	}
	return found, err
}

// byLink is the admission to a public tunnel, which may have been private: a link with a token in it is tidied up all the same.
func (g *gatekeeper) byLink(ctx context.Context, t *tunnelRequest, found *knowledge) admission {
	if t.offered.query != "" {
		if let, err := g.connectToken(ctx, t); err == nil {
			let.knowledge = found
			return let
		}
	}
	return admission{knowledge: found}
}

// connectToken is the admission by a connect token: one without a token where there is none that is good and an API token may be tried. The
// error is of the last bad one.
func (g *gatekeeper) connectToken(ctx context.Context, t *tunnelRequest) (admission, error) {
	tokens := make([]string, 0, 2+len(t.offered.cookies))
	for _, given := range []string{t.offered.header, t.offered.query} {
		if given != "" {
			tokens = append(tokens, given)
		}
	}
	if t.offered.ownPage {
		tokens = append(tokens, t.offered.cookies...)
	}
	if len(tokens) == 0 {
		return admission{}, nil
	}
	secret, err := g.oracle.signing(ctx)
	if err != nil {
		return admission{}, err
	}
	var refusal error
	for _, given := range tokens {
		claims, err := token.CheckConnect(secret, given, time.Now(), t.target.sandbox, t.target.port)
		if err == nil {
			return admission{token: given, expires: time.Unix(claims.Expires, 0)}, nil
		}
		var f *fault.Fault
		if !errors.As(err, &f) {
			return admission{}, err
		}
		refusal = newProblem(f.Code, f.Message)
	}
	if t.offered.apiToken != "" {
		return admission{}, nil
	}
	return admission{}, refusal
}

func (g *gatekeeper) byAPIToken(ctx context.Context, t *tunnelRequest) (admission, error) {
	if t.offered.apiToken == "" {
		return admission{}, newProblem(fault.Unauthenticated, "this tunnel is private, or there is none: open it with a connect token "+
			"(`sandbox.connect_token`, `shoal tunnel`), in the header X-Shoal-Connect-Token or as ?shoal_token=…")
	}
	q := t.question()
	q.apiToken = t.offered.apiToken
	found, err := g.oracle.look(ctx, q, knownFor)
	if err == nil && !found.Admitted {
		found, err = g.oracle.look(ctx, q, doubtedFor)
	}
	if err != nil {
		return admission{}, err
	}
	if !found.Admitted {
		return admission{}, found.refusal()
	}
	found, err = g.opened(ctx, q, found)
	return admission{knowledge: found}, err
}
