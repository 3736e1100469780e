package duplex

import (
	"io"
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
	for {
		var buffer *[bufferSize]byte
		n, failure := 0, error(nil)
		err := raw.Read(func(fd uintptr) bool {
			if buffer == nil {
				buffer = buffers.Get().(*[bufferSize]byte)
			}
			n, failure = readNow(fd, buffer[:])
			if failure == syscall.EAGAIN {
				buffers.Put(buffer)
				buffer = nil
				return false
			}
			return true
		})
		if err == nil {
			err = failure
		}
		if err == nil && n == 0 {
			err = io.EOF
		}
		if err == nil {
			_, err = dst.Write(buffer[:n])
		}
		if buffer != nil {
			buffers.Put(buffer)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func readNow(fd uintptr, p []byte) (int, error) {
	for {
		n, err := syscall.Read(int(fd), p)
		if err != syscall.EINTR {
			return max(n, 0), err
		}
	}
}
