package gateway

import (
	"encoding/json"
	"errors"
	"html"
	"maps"
	"net/http"
	"strconv"
	"strings"

	"shoal/agent/internal/fault"
)

const problemType = "application/problem+json"

// deadlineExceeded is a code of shoal.model.errors that only the gateway uses.
const deadlineExceeded fault.Code = "deadline_exceeded"

// problem is an error that is sent to a client as a problem document (RFC 9457), in the same form as the API's own.
type problem struct {
	status     int
	code       fault.Code
	detail     string
	retryable  bool
	retryAfter int // seconds; 0: 1 second if the client may retry
	fields     map[string]any
	headers    map[string]string
}

func (p *problem) Error() string { return p.detail }

var statuses = map[fault.Code]int{
	fault.InvalidRequest:     http.StatusBadRequest,
	fault.Unauthenticated:    http.StatusUnauthorized,
	fault.PermissionDenied:   http.StatusForbidden,
	fault.NotFound:           http.StatusNotFound,
	deadlineExceeded:         http.StatusRequestTimeout,
	fault.FailedPrecondition: http.StatusConflict,
	fault.QuotaExceeded:      http.StatusTooManyRequests,
	fault.Internal:           http.StatusInternalServerError,
	fault.Unavailable:        http.StatusServiceUnavailable,
}

func newProblem(code fault.Code, detail string) *problem {
	return &problem{status: statuses[code], code: code, detail: detail, retryable: code == fault.Unavailable}
}

// invalidRequest is an invalid_request with a more specific status.
func invalidRequest(status int, detail string) *problem {
	return &problem{status: status, code: fault.InvalidRequest, detail: detail}
}

// unknownOutcome is for a request that was sent and may have been carried out.
func unknownOutcome(detail string) *problem {
	return &problem{status: http.StatusServiceUnavailable, code: fault.Unavailable, detail: detail}
}

// asProblem returns the problem in err, if there is one.
func asProblem(err error) (*problem, bool) {
	var p *problem
	found := errors.As(err, &p)
	return p, found
}

// problemFromDocument converts a problem document of the API. A document that is not valid becomes an internal error.
func problemFromDocument(document map[string]any) *problem {
	code, _ := document["code"].(string)
	status, _ := document["status"].(float64)
	detail, _ := document["detail"].(string)
	if code == "" || status < 400 || status > 599 {
		return newProblem(fault.Internal, "the API refused the request without a valid reason")
	}
	p := &problem{status: int(status), code: fault.Code(code), detail: detail, fields: maps.Clone(document)}
	p.retryable, _ = document["retryable"].(bool)
	if after, found := document["retry_after"].(float64); found {
		p.retryAfter = max(1, int(after+0.999))
	}
	return p
}

func (p *problem) title() string { return http.StatusText(p.status) }

func (p *problem) document(requestID string) []byte {
	members := map[string]any{}
	maps.Copy(members, p.fields)
	maps.Copy(members, map[string]any{
		"type": "urn:shoal:error:" + string(p.code), "title": p.title(), "status": p.status, "detail": p.detail,
		"code": p.code, "retryable": p.retryable, "request_id": requestID,
	})
	body, err := json.Marshal(members)
	if err != nil {
		return nil
	}
	return body
}

// write sends the problem document.
func (p *problem) write(w http.ResponseWriter, requestID string) {
	p.writeBody(w, requestID, problemType, p.document(requestID))
}

// writePage sends the problem as an HTML page.
func (p *problem) writePage(w http.ResponseWriter, requestID string) {
	page := strings.NewReplacer(
		"{title}", html.EscapeString(p.title()), "{detail}", html.EscapeString(p.detail),
		"{status}", strconv.Itoa(p.status), "{code}", html.EscapeString(string(p.code)),
	).Replace(pageTemplate)
	p.writeBody(w, requestID, "text/html; charset=utf-8", []byte(page))
}

func (p *problem) writeBody(w http.ResponseWriter, requestID, kind string, body []byte) {
	h := w.Header()
	clear(h)
	h.Set("Content-Type", kind)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Request-Id", requestID)
	if p.status == http.StatusUnauthorized {
		h.Set("Www-Authenticate", `Bearer realm="shoal"`)
	}
	if p.status == http.StatusTooManyRequests || p.retryable {
		h.Set("Retry-After", strconv.Itoa(max(1, p.retryAfter)))
	}
	for name, value := range p.headers {
		h.Set(name, value)
	}
	w.WriteHeader(p.status)
	w.Write(body)
}

const pageTemplate = `<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:40em;margin:15vh auto;padding:0 1em}h1{font-size:1.3em}small{opacity:.6}</style>
<h1>{title}</h1><p>{detail}</p><p><small>{status} {code}</small></p></html>
`
