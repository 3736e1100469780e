// Package fault defines the errors that the agent and relay send: a code from Shoal's list, a message that names the
// field and the remedy, and further fields.
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

// These are the codes that agent and relay use.
const (
	InvalidRequest       Code = "invalid_request"
	IsADirectory         Code = "is_a_directory"
	NotADirectory        Code = "not_a_directory"
	RelativePath         Code = "relative_path"
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

// Fault is an error with a code. Field names the wrong argument. ExitCode is the exit code that a shell would report.
type Fault struct {
	Code     Code   `json:"code"`
	Message  string `json:"message"`
	Field    string `json:"field,omitempty"`
	ExitCode int    `json:"exit_code,omitempty"`
}

func (f *Fault) Error() string { return f.Message }

// New makes a fault with a formatted message.
func New(code Code, format string, args ...any) *Fault {
	return &Fault{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Invalid makes an invalid_request fault that names its field.
func Invalid(field, format string, args ...any) *Fault {
	return &Fault{Code: InvalidRequest, Field: field, Message: field + ": " + fmt.Sprintf(format, args...)}
}

// IsDirectory makes a fault for a directory in the place of a file.
func IsDirectory(field, path, remedy string) *Fault {
	f := Invalid(field, "%.200s is a directory: %s", path, remedy)
	f.Code = IsADirectory
	return f
}

// Relative makes a fault for a path that is not absolute.
func Relative(field, path string) *Fault {
	f := Invalid(field, "%.200q is relative: give an absolute path, which starts with /", path)
	f.Code = RelativePath
	return f
}

// From turns any error into a fault. If the error is or wraps a fault, From returns that fault.
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

// Path turns an error of an operation on a path into a fault. It names the given field if the error names none.
func Path(field string, err error) *Fault {
	f := From(err)
	if f.Field == "" {
		copied := *f
		copied.Field = field
		copied.Message = field + ": " + strings.TrimPrefix(f.Message, field+": ") + remedies[f.Code]
		return &copied
	}
	return f
}

// remedies are what may help against an error of the kernel's.
var remedies = map[Code]string{
	IsADirectory:     " (name a file)",
	NotADirectory:    " (each part of a path but the last must be a directory)",
	PermissionDenied: " (name a user who may do this, such as root)",
}

// escapes reports whether os.Root refused to leave its directory. Package os does not export that error.
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
	case syscall.ENOTDIR:
		return NotADirectory
	case syscall.EISDIR:
		return IsADirectory
	case syscall.ELOOP, syscall.ENAMETOOLONG, syscall.EINVAL, syscall.EXDEV, syscall.E2BIG:
		return InvalidRequest
	case syscall.EBUSY, syscall.ETXTBSY, syscall.EPIPE:
		return FailedPrecondition
	}
	return Internal
}
