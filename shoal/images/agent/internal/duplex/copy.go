package duplex

import (
	"sync"
	"syscall"
)

// bufferSize is the most that one direction holds. It holds a buffer only while it copies: an idle connection costs no
// buffer, and no descriptors but its own. The kernel's splice is a quarter faster for bulk data, but it keeps a pipe of
// 1 MiB for each direction of each connection. An unprivileged user gets 64 such pipes on the whole machine, and after
// that all of the user's new pipes shrink to two pages.
const bufferSize = 32 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// Move copies until the end of src, or until either connection fails.
func Move(dst, src Conn) error {
	if secure, ok := src.(*TLSConn); ok {
		return secure.moveTo(dst)
	}
	raw, err := src.SyscallConn()
	if err != nil {
		return err
	}
	var buffer *[bufferSize]byte
	var n int
	var failure error
	read := func(fd uintptr) bool {
		buffer = buffers.Get().(*[bufferSize]byte)
		n, failure = readNow(fd, buffer[:])
		if failure != syscall.EAGAIN {
			return true
		}
		release(&buffer) // a connection that waits holds no buffer
		return false
	}
	for {
		if err := raw.Read(read); err != nil {
			return err // src was closed, or its deadline has passed
		}
		if failure == nil && n > 0 {
			_, failure = dst.Write(buffer[:n])
		}
		release(&buffer)
		if failure != nil || n == 0 {
			return failure
		}
	}
}

func release(buffer **[bufferSize]byte) {
	buffers.Put(*buffer)
	*buffer = nil
}

func readNow(fd uintptr, p []byte) (int, error) {
	for {
		n, err := syscall.Read(int(fd), p)
		if err != syscall.EINTR {
			return max(n, 0), err
		}
	}
}
