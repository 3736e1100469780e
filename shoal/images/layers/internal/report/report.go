// Package report writes what a command has to say: lines of JSON on stdout, progress first, then one result or error.
//
//	{"progress": {"bytes": 1048576, "entries": 12}}
//	{"copied": {}}
//	{"result": {…}}
//	{"error": {"code": "invalid_request", "message": "…", "field": "image"}}
package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"
)

// Codes of Shoal's error tree (shoal/model/errors.py) that this program uses.
const (
	InvalidRequest   = "invalid_request"
	ImageNotFound    = "image_not_found"
	PermissionDenied = "permission_denied"
	QuotaExceeded    = "quota_exceeded"
	Unavailable      = "unavailable"
	Internal         = "internal"
)

// progressInterval is the least time between two lines of progress.
const progressInterval = 500 * time.Millisecond

// Failure is an error with a code of Shoal's error tree.
type Failure struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Field   string `json:"field,omitempty"`
}

func (f *Failure) Error() string { return f.Message }

// Invalid is what a bad image gets: a hostile archive, a wrong digest, something beyond a bound.
func Invalid(format string, args ...any) error {
	return &Failure{Code: InvalidRequest, Message: fmt.Sprintf(format, args...), Field: "image"}
}

// Fail makes an error with a code.
func Fail(code, format string, args ...any) error {
	return &Failure{Code: code, Message: fmt.Sprintf(format, args...)}
}

// failureOf gives every error a code.
func failureOf(err error) *Failure {
	var failure *Failure
	if errors.As(err, &failure) {
		return failure
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return &Failure{Code: QuotaExceeded, Message: "the disk is full: " + err.Error()}
	}
	return &Failure{Code: Internal, Message: err.Error()}
}

// Reporter writes the lines. Safe for several goroutines.
type Reporter struct {
	mutex sync.Mutex
	out   *json.Encoder
	last  time.Time
}

// New returns a reporter that writes to out.
func New(out io.Writer) *Reporter {
	return &Reporter{out: json.NewEncoder(out), last: time.Now()}
}

// Progress writes how far the command is, if the last line was written long enough ago.
func (r *Reporter) Progress(bytes, entries int64) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	now := time.Now()
	if now.Sub(r.last) < progressInterval {
		return
	}
	r.last = now
	_ = r.out.Encode(map[string]any{"progress": map[string]int64{"bytes": bytes, "entries": entries}})
}

// Copied tells that what the command copies may change from now on.
func (r *Reporter) Copied() {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	_ = r.out.Encode(map[string]any{"copied": map[string]any{}})
}

// Result writes the last line of a command that succeeded.
func (r *Reporter) Result(result any) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	_ = r.out.Encode(map[string]any{"result": result})
}

// Error writes the last line of a command that failed.
func (r *Reporter) Error(err error) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	_ = r.out.Encode(map[string]any{"error": failureOf(err)})
}
