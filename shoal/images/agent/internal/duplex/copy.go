package duplex

import (
	"sync"
	"syscall"
)

// bufferSize is what one direction holds at most, and only while it has something to carry: an idle connection costs no buffer, and no
// descriptors but its own. The kernel's splice is a quarter faster at bulk, but keeps a pipe of 1 MiB for each direction of each
// connection; and of those a user without privileges gets 64 on the whole machine, before all pipes of his shrink to two pages.
const bufferSize = 32 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// move copies until the end of src, or an error of either.
func move(dst, src Conn) error {
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
		release(&buffer) // nothing is held while nothing comes
		return false
	}
	for {
		if err := raw.Read(read); err != nil {
			return err // closed, or at its deadline
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
