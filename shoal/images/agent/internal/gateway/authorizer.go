package gateway

import (
	"context"
	"errors"
	"time"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/token"
)

// authorization is why a request may use its tunnel.
type authorization struct {
	info    *tunnelInfo
	token   string    // the connect token that allowed the request; "" if none was needed
	expires time.Time // when the token expires
}

// tunnelAuthorizer decides who may use a tunnel. Everybody may use a public one. A private one needs a connect token
// for this tunnel or an API token for the sandbox's environment. Without either, a missing sandbox, a sandbox without
// tunnels and a private tunnel give the same answer.
type tunnelAuthorizer struct {
	lookup *tunnelLookup
}

// authorize returns an error that is a problem, or the context's error.
func (a *tunnelAuthorizer) authorize(ctx context.Context, t *tunnelRequest) (authorization, error) {
	info, err := a.lookup.get(ctx, t.lookupKey(), cacheTTL)
	if err == nil && !info.isPublic() && t.credentials.empty() {
		info, err = a.lookup.get(ctx, t.lookupKey(), negativeCacheTTL)
	}
	if err != nil {
		return authorization{}, err
	}
	if info.isPublic() {
		return a.authorizePublic(ctx, t, info), nil
	}
	auth, err := a.authorizeConnectToken(ctx, t)
	if err != nil {
		return authorization{}, err
	}
	if auth.token == "" {
		return a.authorizeAPIToken(ctx, t)
	}
	if auth.info, err = a.requireOpen(ctx, t.lookupKey(), info); err != nil {
		return authorization{}, err
	}
	return auth, nil
}

// recheck returns a problem if a request in progress is no longer allowed. It returns nil if the API cannot say at the
// moment. A connect token that has expired since the request began does not end the request.
func (a *tunnelAuthorizer) recheck(ctx context.Context, t *tunnelRequest, auth authorization) error {
	var err error
	if auth.token == "" {
		_, err = a.authorize(ctx, t)
	} else if info, failed := a.lookup.get(ctx, t.lookupKey(), cacheTTL); failed != nil {
		err = failed
	} else if !info.Open {
		err = info.notFoundProblem()
	}
	p, found := asProblem(err)
	if !found || p.code == fault.Unavailable || p.code == fault.QuotaExceeded || p.code == fault.Internal {
		return nil
	}
	return p
}

// requireOpen asks the API again if there is no tunnel in the cache: the tunnel may have been opened a moment ago.
func (a *tunnelAuthorizer) requireOpen(ctx context.Context, key lookupKey, info *tunnelInfo) (*tunnelInfo, error) {
	if info.Open {
		return info, nil
	}
	info, err := a.lookup.get(ctx, key, 0)
	if err == nil && !info.Open {
		err = info.notFoundProblem()
	}
	return info, err
}

// authorizePublic checks the connect token in the URL as well, if there is one: the client is then redirected to the
// URL without it.
func (a *tunnelAuthorizer) authorizePublic(ctx context.Context, t *tunnelRequest, info *tunnelInfo) authorization {
	if t.credentials.query != "" {
		if auth, err := a.authorizeConnectToken(ctx, t); err == nil {
			auth.info = info
			return auth
		}
	}
	return authorization{info: info}
}

// authorizeConnectToken returns an authorization without a token if the request has no valid connect token and an API
// token may be tried. The error is that of the last invalid connect token.
func (a *tunnelAuthorizer) authorizeConnectToken(ctx context.Context, t *tunnelRequest) (authorization, error) {
	tokens := t.credentials.connectTokens()
	if len(tokens) == 0 {
		return authorization{}, nil
	}
	secret, err := a.lookup.signingSecret(ctx)
	if err != nil {
		return authorization{}, err
	}
	var rejection error
	for _, text := range tokens {
		claims, err := token.CheckConnect(secret, text, time.Now(), t.target.sandbox, t.target.port)
		if err == nil {
			return authorization{token: text, expires: time.Unix(claims.Expires, 0)}, nil
		}
		var f *fault.Fault
		if !errors.As(err, &f) {
			return authorization{}, err
		}
		rejection = newProblem(f.Code, f.Message)
	}
	if t.credentials.apiToken != "" {
		return authorization{}, nil
	}
	return authorization{}, rejection
}

func (a *tunnelAuthorizer) authorizeAPIToken(ctx context.Context, t *tunnelRequest) (authorization, error) {
	if t.credentials.apiToken == "" {
		return authorization{}, newProblem(fault.Unauthenticated, "this tunnel is private or does not exist; "+
			"open it with a connect token (`sandbox.connect_token`, `shoal tunnel`), "+
			"in the header X-Shoal-Connect-Token or as ?shoal_token=…")
	}
	key := t.lookupKey()
	key.apiToken = t.credentials.apiToken
	info, err := a.lookup.get(ctx, key, cacheTTL)
	if err == nil && !info.Admitted {
		info, err = a.lookup.get(ctx, key, negativeCacheTTL)
	}
	if err != nil {
		return authorization{}, err
	}
	if !info.Admitted {
		return authorization{}, info.refusalProblem()
	}
	info, err = a.requireOpen(ctx, key, info)
	return authorization{info: info}, err
}
