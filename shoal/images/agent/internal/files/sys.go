package files

import (
	"syscall"
	"time"
	"unsafe"
)

// These constants are missing in package syscall, or combine its flags.
const (
	atCWD        = -100
	atNoFollow   = 0x100
	atRemoveDir  = 0x200
	oPath        = 0x200000
	noReplace    = 1
	omitTime     = 1<<30 - 2
	oSafe        = syscall.O_CLOEXEC | syscall.O_NONBLOCK | syscall.O_NOCTTY
	oDirectory   = syscall.O_RDONLY | syscall.O_DIRECTORY | syscall.O_CLOEXEC
	oDirNoFollow = oDirectory | syscall.O_NOFOLLOW
)

// again repeats a call as long as a signal interrupts it.
func again(call func() error) error {
	for {
		if err := call(); err != syscall.EINTR {
			return err
		}
	}
}

func openAt(dir int, name string, flags int, mode uint32) (fd int, err error) {
	err = again(func() error { fd, err = syscall.Openat(dir, name, flags|syscall.O_CLOEXEC, mode); return err })
	return fd, err
}

// call makes a system call. The directive keeps the memory that its arguments point at alive and in place.
//
//go:uintptrescapes
func call(number uintptr, args ...uintptr) (uintptr, error) {
	var six [6]uintptr
	copy(six[:], args)
	for {
		n, _, errno := syscall.Syscall6(number, six[0], six[1], six[2], six[3], six[4], six[5])
		if errno == 0 {
			return n, nil
		}
		if errno != syscall.EINTR {
			return n, errno
		}
	}
}

// lstatAt never follows a link at name.
func lstatAt(dir int, name string) (st syscall.Stat_t, err error) {
	p, err := syscall.BytePtrFromString(name)
	if err == nil {
		_, err = call(sysFstatat, uintptr(dir), uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&st)), atNoFollow)
	}
	return st, err
}

func readlinkAt(dir int, name string) (string, error) {
	p, err := syscall.BytePtrFromString(name)
	if err != nil {
		return "", err
	}
	var buf [maxPath]byte
	n, err := call(syscall.SYS_READLINKAT, uintptr(dir), uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&buf[0])), maxPath)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

func symlinkAt(target string, dir int, name string) error {
	t, err := syscall.BytePtrFromString(target)
	if err != nil {
		return err
	}
	p, err := syscall.BytePtrFromString(name)
	if err == nil {
		_, err = call(syscall.SYS_SYMLINKAT, uintptr(unsafe.Pointer(t)), uintptr(dir), uintptr(unsafe.Pointer(p)))
	}
	return err
}

func unlinkAt(dir int, name string, flags int) error {
	p, err := syscall.BytePtrFromString(name)
	if err == nil {
		_, err = call(syscall.SYS_UNLINKAT, uintptr(dir), uintptr(unsafe.Pointer(p)), uintptr(flags))
	}
	return err
}

// renameAt renames a file. Without overwrite it returns EEXIST if the new name exists.
func renameAt(fromDir int, from string, toDir int, to string, overwrite bool) error {
	if overwrite {
		return again(func() error { return syscall.Renameat(fromDir, from, toDir, to) })
	}
	f, err := syscall.BytePtrFromString(from)
	if err != nil {
		return err
	}
	t, err := syscall.BytePtrFromString(to)
	if err != nil {
		return err
	}
	_, err = call(
		sysRenameat2, uintptr(fromDir), uintptr(unsafe.Pointer(f)), uintptr(toDir), uintptr(unsafe.Pointer(t)), noReplace,
	)
	if err != syscall.EINVAL && err != syscall.ENOSYS {
		return err
	}
	// This kernel or file system cannot refuse to replace a file, so check first.
	if _, err := lstatAt(toDir, to); err == nil {
		return syscall.EEXIST
	}
	return again(func() error { return syscall.Renameat(fromDir, from, toDir, to) })
}

// setModified sets the time of modification of an open file.
func setModified(fd int, t time.Time) error {
	times := [2]syscall.Timespec{{Nsec: omitTime}, {Sec: t.Unix(), Nsec: int64(t.Nanosecond())}}
	_, err := call(syscall.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&times)), 0)
	return err
}

// setOwner sets the owner of an open file if it has another. That clears set-uid, so set the mode afterwards.
func setOwner(fd int, uid, gid uint32) error {
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Uid == uid && st.Gid == gid {
		return nil
	}
	return syscall.Fchown(fd, int(uid), int(gid))
}

// setMode sets the mode of an open file if it has another. Only its owner may do that.
func setMode(fd int, mode uint32) error {
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil || st.Mode&modes == mode {
		return err
	}
	return syscall.Fchmod(fd, mode)
}

func writeAll(fd int, p []byte) error {
	for len(p) > 0 {
		n, err := syscall.Write(fd, p)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// namesIn returns the names in an open directory, in the kernel's order.
func namesIn(dir int) (names []string, err error) {
	err = eachNames(dir, func(more []string) { names = append(names, more...) })
	return names, err
}

// eachNames calls do with some names at a time.
func eachNames(dir int, do func(names []string)) error {
	buf := make([]byte, 32<<10)
	for {
		var n int
		err := again(func() (err error) { n, err = syscall.ReadDirent(dir, buf); return err })
		if err != nil || n <= 0 {
			return err
		}
		_, _, names := syscall.ParseDirent(buf[:n], -1, nil)
		do(names)
	}
}

func isKind(st *syscall.Stat_t, kind uint32) bool { return st.Mode&syscall.S_IFMT == kind }

// copyFileRange copies between two open files, at the places where they are.
func copyFileRange(from, to, size int) (int, error) {
	n, err := call(sysCopyFileRange, uintptr(from), 0, uintptr(to), 0, uintptr(size), 0)
	return int(n), err
}
