package proc

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"syscall"

	"shoal/agent/internal/fault"
)

// The exit codes that a shell reports for a missing command and for one that cannot be run, and the PATH used when the
// environment has none.
const (
	exitNotFound      = 127
	exitNotExecutable = 126
	defaultPath       = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// findCommand returns the file that argv[0] names. A name without a slash is looked up in the PATH of env.
func findCommand(name string, env []string, workdir string) (string, error) {
	if strings.IndexByte(name, '/') >= 0 {
		return name, nil // if it is wrong, exec gives the best error
	}
	list, set := lookupEnv(env, "PATH")
	if !set {
		list = defaultPath
	}
	found := ""
	for dir := range strings.SplitSeq(list, ":") {
		candidate := path.Join(dir, name)
		if dir == "" || dir[0] != '/' {
			candidate = path.Join(workdir, dir, name)
		}
		var st syscall.Stat_t
		if syscall.Stat(candidate, &st) != nil || st.Mode&syscall.S_IFMT != syscall.S_IFREG {
			continue
		}
		if st.Mode&0o111 != 0 {
			return candidate, nil
		}
		if found == "" {
			found = candidate
		}
	}
	if found != "" {
		return "", notExecutable("%s: it is not marked as executable: chmod +x it, or run it by its interpreter", found)
	}
	return "", notFound(
		"%s: no such program in the PATH searched (%s): install it in the image, or give its path",
		name, shorten(list, 1024),
	)
}

func checkDirectory(dir string) error {
	var st syscall.Stat_t
	if err := syscall.Stat(dir, &st); err != nil {
		return fault.Invalid("workdir", "%s: %v in the sandbox: create it first", dir, err)
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		return fault.Path("workdir", fmt.Errorf("%s: %w in the sandbox", dir, syscall.ENOTDIR))
	}
	return nil
}

// explain turns an error of fork or exec into a fault that says what to do.
func (p *plan) explain(err error) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return err
	}
	file := p.path
	if file[0] != '/' {
		file = path.Join(p.workdir, file)
	}
	info, missing := os.Stat(file)
	switch errno {
	case syscall.ENOENT, syscall.ENOTDIR:
		if missing != nil {
			return notFound("%s: no such program in the sandbox", p.path)
		}
		if interpreter := interpreterOf(file); interpreter != "" {
			return notFound("%s: its interpreter %s is not in the sandbox: install it in the image", p.path, interpreter)
		}
		return fault.Invalid("workdir", "%s no longer exists", p.workdir)
	case syscall.ENOEXEC:
		return notExecutable("%s: it is neither a program for this architecture nor a script that begins with #!", p.path)
	case syscall.EACCES, syscall.EPERM, syscall.EISDIR, syscall.ELIBBAD:
		switch {
		case missing == nil && info.IsDir():
			return notExecutable("%s: it is a directory", p.path)
		case missing == nil && info.Mode()&0o111 == 0:
			return notExecutable("%s: it is not marked as executable: chmod +x it, or run it by its interpreter", p.path)
		case p.user != nil && p.userID != 0:
			return notExecutable(
				"%s: %v for uid %d (or that user may not enter the directory %s)", p.path, errno, p.userID, p.workdir,
			)
		}
		return notExecutable("%s: %v", p.path, errno)
	case syscall.ELOOP, syscall.ENAMETOOLONG, syscall.ETXTBSY:
		return notExecutable("%s: %v", p.path, errno)
	case syscall.E2BIG:
		arguments, variables := sizeOf(p.argv), sizeOf(p.env)
		field := "argv"
		if variables > arguments {
			field = "env"
		}
		return fault.Invalid(
			field, "arguments (%d bytes) and environment (%d bytes) together exceed the kernel's limit: use a file or stdin",
			arguments, variables,
		)
	case syscall.EAGAIN, syscall.ENOMEM, syscall.EMFILE, syscall.ENFILE:
		return fault.New(
			fault.QuotaExceeded,
			"no process can be started (%v): the sandbox is at its limit of processes, memory or descriptors", errno,
		)
	}
	return fault.New(fault.Internal, "%s cannot be started: %v", p.path, errno)
}

// sizeOf returns the bytes that the kernel counts for arguments or variables: with their NULs and pointers.
func sizeOf(list []string) int {
	const pointer = 8
	size := 0
	for _, each := range list {
		size += len(each) + 1 + pointer
	}
	return size
}

// interpreterOf returns the interpreter that a script's first line or a program's header names, or "".
func interpreterOf(file string) string {
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	head := make([]byte, 256)
	n, _ := io.ReadFull(f, head)
	if rest, ok := bytes.CutPrefix(head[:n], []byte("#!")); ok {
		line, _, _ := bytes.Cut(rest, []byte("\n"))
		if words := bytes.Fields(line); len(words) > 0 {
			return strings.ToValidUTF8(string(words[0]), "�")
		}
		return ""
	}
	program, err := elf.NewFile(f)
	if err != nil {
		return ""
	}
	for _, segment := range program.Progs {
		if segment.Type == elf.PT_INTERP {
			name, _ := io.ReadAll(io.LimitReader(segment.Open(), 4096))
			return strings.ToValidUTF8(strings.TrimRight(string(name), "\x00"), "�")
		}
	}
	return ""
}

func notFound(format string, args ...any) error {
	f := fault.New(fault.CommandNotFound, format, args...)
	f.Field, f.ExitCode = "argv", exitNotFound
	return f
}

func notExecutable(format string, args ...any) error {
	f := fault.New(fault.CommandNotExecutable, format, args...)
	f.Field, f.ExitCode = "argv", exitNotExecutable
	return f
}

func shorten(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}
