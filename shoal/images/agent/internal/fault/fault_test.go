package fault

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestErrnosGetTheCodeThatTellsWhatToDo(t *testing.T) {
	for errno, code := range map[syscall.Errno]Code{
		syscall.ENOSPC: QuotaExceeded, syscall.EDQUOT: QuotaExceeded, syscall.EACCES: PermissionDenied, syscall.EPERM: PermissionDenied,
		syscall.EROFS: PermissionDenied, syscall.ENOENT: PathNotFound, syscall.EEXIST: AlreadyExists, syscall.ENOTEMPTY: AlreadyExists,
		syscall.ENOTDIR: NotADirectory, syscall.EISDIR: IsADirectory, syscall.ELOOP: InvalidRequest,
		syscall.ENAMETOOLONG: InvalidRequest, syscall.EINVAL: InvalidRequest, syscall.EIO: Internal,
	} {
		wrapped := fmt.Errorf("above: %w", &os.PathError{Op: "open", Path: "/x", Err: errno})
		if f := From(wrapped); f.Code != code || !strings.Contains(f.Message, "/x") {
			t.Errorf("%v: %s %q", errno, f.Code, f.Message)
		}
	}
}

func TestAFaultStaysWhatItIs(t *testing.T) {
	f := Invalid("argv", "give %d", 1)
	if From(fmt.Errorf("above: %w", f)) != f {
		t.Error("it was changed")
	}
	if Path("path", f).Field != "argv" {
		t.Error("another field")
	}
	if got := Path("to", syscall.ENOENT); got.Field != "to" {
		t.Errorf("%+v", got)
	}
}

func TestMessagesAreValidUnicode(t *testing.T) {
	raw, err := json.Marshal(From(errors.New("a \xff name")))
	if err != nil || !strings.Contains(string(raw), `"code":"internal"`) || strings.Contains(string(raw), "exit_code") {
		t.Errorf("%s, %v", raw, err)
	}
}
