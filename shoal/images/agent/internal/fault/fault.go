// Package fault is an error as it travels: a code of Shoal's own list, a message that names field and remedy, and fields.
package fault

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
)

// Code is one of the stable codes of shoal.model.errors.
type Code string

// The codes that agent and relay use.
const (
	InvalidRequest       Code = "invalid_request"
	PathNotFound         Code = "path_not_found"
	ProcessNotFound      Code = "process_not_found"
	UserNotFound         Code = "user_not_found"
	NotFound             Code = "not_found"
	AlreadyExists        Code = "already_exists"
	FailedPrecondition   Code = "failed_precondition"
	QuotaExceeded        Code = "quota_exceeded"
	PermissionDenied     Code = "permission_denied"
	Unauthenticated      Code = "unauthenticated"
	CommandNotFound      Code = "command_not_found"
	CommandNotExecutable Code = "command_not_executable"
	Unavailable          Code = "unavailable"
	Internal             Code = "internal"
)

// Fault is an error with a code. Field names the argument at fault; ExitCode is what a shell would report.
type Fault struct {
	Code     Code   `json:"code"`
	Message  string `json:"message"`
	Field    string `json:"field,omitempty"`
	ExitCode int    `json:"exit_code,omitempty"`
}

func (f *Fault) Error() string { return f.Message }

// New makes a fault of the formatted message.
func New(code Code, format string, args ...any) *Fault {
	return &Fault{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Invalid is an invalid_request that names its field.
func Invalid(field, format string, args ...any) *Fault {
	return &Fault{Code: InvalidRequest, Field: field, Message: field + ": " + fmt.Sprintf(format, args...)}
}

// From turns any error into a fault; one that already is, or wraps, a fault stays what it is.
func From(err error) *Fault {
	var f *Fault
	if errors.As(err, &f) {
		return f
	}
	code := Internal
	var errno syscall.Errno
	if errors.As(err, &errno) {
		code = ofErrno(errno)
	} else if escapes(err) {
		code = InvalidRequest
	}
	return &Fault{Code: code, Message: strings.ToValidUTF8(err.Error(), "�")}
}

// Path is From for an operation on a path: the field named is the path's.
func Path(field string, err error) *Fault {
	f := From(err)
	if f.Field == "" {
		copied := *f
		copied.Field = field
		return &copied
	}
	return f
}

// escapes: os.Root refused to leave its directory, which it tells by an error of no exported name.
func escapes(err error) bool {
	var pe *fs.PathError
	return errors.As(err, &pe) && strings.Contains(pe.Err.Error(), "escapes")
}

func ofErrno(errno syscall.Errno) Code {
	switch errno {
	case syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EAGAIN:
		return QuotaExceeded
	case syscall.EACCES, syscall.EPERM, syscall.EROFS:
		return PermissionDenied
	case syscall.ENOENT:
		return PathNotFound
	case syscall.EEXIST, syscall.ENOTEMPTY:
		return AlreadyExists
	case syscall.ENOTDIR, syscall.EISDIR, syscall.ELOOP, syscall.ENAMETOOLONG, syscall.EINVAL, syscall.EXDEV, syscall.E2BIG:
		return InvalidRequest
	case syscall.EBUSY, syscall.ETXTBSY, syscall.EPIPE:
		return FailedPrecondition
	}
	return Internal
}
