package proc

import (
	"os"
	"sort"
	"strconv"
	"strings"
	"syscall"

	"shoal/agent/internal/fault"
)

// The shim is this program, started in place of a command with limits, because limits must be set between fork and
// exec. It reports a failure on descriptor 3, which closes by itself when the command is executed.
//
//	agent shim nofile=64,core=0 PATH ARGV…

const shimReportFD = 3

var limitNumbers = map[string]int{
	"cpu": syscall.RLIMIT_CPU, "fsize": syscall.RLIMIT_FSIZE, "stack": syscall.RLIMIT_STACK,
	"core": syscall.RLIMIT_CORE, "nofile": syscall.RLIMIT_NOFILE, "nproc": 6,
}

// CheckLimits returns an error if a name is not a limit.
func CheckLimits(limits map[string]uint64) error {
	for name := range limits {
		if _, known := limitNumbers[name]; !known {
			return fault.Invalid("limits", "%q is not one of cpu, core, fsize, nofile, nproc, stack", name)
		}
	}
	return nil
}

func shimArgs(self, path string, argv []string, limits map[string]uint64) []string {
	settings := make([]string, 0, len(limits))
	for name, value := range limits {
		settings = append(settings, name+"="+strconv.FormatUint(value, 10))
	}
	sort.Strings(settings)
	return append([]string{self, "shim", strings.Join(settings, ","), path}, argv...)
}

// Shim runs the `shim` subcommand. It returns only if it failed.
func Shim(args []string) int {
	syscall.CloseOnExec(shimReportFD)
	if len(args) < 3 {
		return 2
	}
	if what, errno := shim(args[0], args[1], args[2:]); errno != 0 {
		syscall.Write(shimReportFD, []byte(what+"="+strconv.Itoa(int(errno))))
	}
	return exitNotExecutable
}

func shim(settings, path string, argv []string) (string, syscall.Errno) {
	for setting := range strings.SplitSeq(settings, ",") {
		name, text, _ := strings.Cut(setting, "=")
		value, err := strconv.ParseUint(text, 10, 64)
		number, known := limitNumbers[name]
		if err != nil || !known {
			return name, syscall.EINVAL
		}
		if err := syscall.Setrlimit(number, &syscall.Rlimit{Cur: value, Max: value}); err != nil {
			return name, errnoOf(err)
		}
	}
	return "exec", errnoOf(syscall.Exec(path, argv, os.Environ()))
}

func errnoOf(err error) syscall.Errno {
	if errno, ok := err.(syscall.Errno); ok {
		return errno
	}
	return syscall.EINVAL
}

type shimReport struct{ r, w int }

func newShimReport() (*shimReport, error) {
	var fds [2]int
	if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC); err != nil {
		return nil, err
	}
	return &shimReport{fds[0], fds[1]}, nil
}

func (s *shimReport) close() {
	syscall.Close(s.r)
	if s.w >= 0 {
		syscall.Close(s.w)
	}
}

// read waits until the shim has executed the command. It returns an error if the shim could not.
func (s *shimReport) read() error {
	syscall.Close(s.w)
	s.w = -1
	buf := make([]byte, 64)
	n := 0
	for n < len(buf) {
		m, err := syscall.Read(s.r, buf[n:])
		if err == syscall.EINTR {
			continue
		}
		if m <= 0 || err != nil {
			break
		}
		n += m
	}
	if n == 0 {
		return nil
	}
	what, text, _ := strings.Cut(string(buf[:n]), "=")
	number, _ := strconv.Atoi(text)
	errno := syscall.Errno(number)
	if what == "exec" {
		return errno
	}
	if errno == syscall.EPERM {
		return fault.Invalid("limits", "%s is above the sandbox's own limit: choose a lower value", what)
	}
	return fault.Invalid("limits", "%s was refused by the kernel: %v", what, errno)
}
