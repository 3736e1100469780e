package proc

import (
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"shoal/agent/internal/fault"
)

// Size is the size of a terminal in characters.
type Size struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// Terminal says what terminal a process gets.
type Terminal struct {
	Size
	// Echo is whether the terminal repeats its input in its output; nil: it does.
	Echo *bool `json:"echo"`
}

const (
	tiocgptpeer = 0x5441
	ttyMode     = 0o620
)

// terminal is the master side of a pseudo-terminal.
type terminal struct{ file *os.File }

// openTerminal makes a pseudo-terminal and returns its master and the peer for the child.
func openTerminal(wanted Terminal, user *syscall.Credential) (master int, peer int, err error) {
	const flags = syscall.O_RDWR | syscall.O_NOCTTY | syscall.O_CLOEXEC | syscall.O_NONBLOCK
	for _, path := range []string{"/dev/pts/ptmx", "/dev/ptmx"} {
		if master, err = syscall.Open(path, flags, 0); err == nil {
			break
		}
	}
	if err != nil {
		return -1, -1, fault.New(fault.FailedPrecondition, "pty: /dev/ptmx cannot be opened in the sandbox: %v", err)
	}
	defer func() {
		if err != nil {
			syscall.Close(master)
		}
	}()
	var unlock int32
	if err = ioctl(master, syscall.TIOCSPTLCK, uintptr(unsafe.Pointer(&unlock))); err != nil {
		return -1, -1, err
	}
	if err = setSize(master, wanted.Size); err != nil {
		return -1, -1, err
	}
	peer, err = openPeer(master)
	if err != nil {
		return -1, -1, err
	}
	if wanted.Echo != nil && !*wanted.Echo {
		if err = silence(peer); err != nil {
			syscall.Close(peer)
			return -1, -1, err
		}
	}
	if user != nil {
		// Programs reopen their terminal by its name, so it must be the user's. The group stays as it is, because the
		// number of the tty group differs between images.
		syscall.Fchown(peer, int(user.Uid), -1)
		syscall.Fchmod(peer, ttyMode)
	}
	return master, peer, nil
}

// silence stops a terminal from repeating its input.
func silence(fd int) error {
	var mode syscall.Termios
	if err := ioctl(fd, syscall.TCGETS, uintptr(unsafe.Pointer(&mode))); err != nil {
		return err
	}
	mode.Lflag &^= syscall.ECHO
	return ioctl(fd, syscall.TCSETS, uintptr(unsafe.Pointer(&mode)))
}

func openPeer(master int) (int, error) {
	flags := syscall.O_RDWR | syscall.O_NOCTTY | syscall.O_CLOEXEC
	// Kernels from 4.13 open the peer through the master, so no path in the sandbox has to be trusted.
	fd, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(master), tiocgptpeer, uintptr(flags))
	if errno == 0 {
		return int(fd), nil
	}
	var number uint32
	if err := ioctl(master, syscall.TIOCGPTN, uintptr(unsafe.Pointer(&number))); err != nil {
		return -1, err
	}
	return syscall.Open("/dev/pts/"+strconv.Itoa(int(number)), flags, 0)
}

func (t *terminal) resize(rows, cols uint16) error {
	raw, err := t.file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = setSize(int(fd), Size{rows, cols}) }); err != nil {
		return nil // closed: the process has ended
	}
	return failed
}

func setSize(fd int, size Size) error {
	winsize := [4]uint16{size.Rows, size.Cols, 0, 0}
	return ioctl(fd, syscall.TIOCSWINSZ, uintptr(unsafe.Pointer(&winsize)))
}

func ioctl(fd int, request, argument uintptr) error {
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), request, argument); errno != 0 {
		return errno
	}
	return nil
}
