package proc

import (
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"
)

const chunkSize = 64 << 10

var chunks = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// pipe is the reading end of one output stream: the descriptor of a pipe or terminal, and the ring that receives the
// output. Until pump starts it is a bare descriptor, so a short-lived process does not use the poller.
type pipe struct {
	fd   int
	file *os.File // set where the descriptor already belongs to a file, as a terminal's does
	ring *Ring
	eof  bool
	done chan struct{} // closed when pump returns

	taking sync.Mutex   // held while pump reads from the descriptor; guards taken
	taken  int64        // bytes that pump has read so far
	moved  atomic.Int64 // bytes of taken that are in the ring
}

func newPipe(fd int, ring *Ring) *pipe { return &pipe{fd: fd, ring: ring} }

// drain moves the available output into the ring without waiting, and reports whether it reached the end.
// It must not be called once pump has started.
func (p *pipe) drain() bool {
	chunk := chunks.Get().(*[chunkSize]byte)
	defer chunks.Put(chunk)
	for !p.eof {
		if _, _, unread := p.ring.Span(); unread > RingSize-chunkSize {
			return false // a chunk might not fit, and only pump can wait for room
		}
		n, err := syscall.Read(p.fd, chunk[:])
		switch {
		case n > 0:
			p.ring.Append(chunk[:n])
		case err == syscall.EINTR:
		case err == syscall.EAGAIN:
			return false
		default: // the end, which for a terminal is EIO
			p.close()
		}
	}
	return true
}

func (p *pipe) close() {
	p.eof = true
	syscall.Close(p.fd)
	p.ring.Close()
}

// start starts a goroutine that moves output into the ring as it comes.
func (p *pipe) start() {
	p.done = make(chan struct{})
	if p.eof {
		close(p.done)
		return
	}
	if p.file == nil {
		p.file = os.NewFile(uintptr(p.fd), "output")
	}
	go p.pump(p.file)
}

// written returns the value that moved reaches once all output written so far is in the ring.
// It must not be called before start.
func (p *pipe) written() int64 {
	p.taking.Lock()
	defer p.taking.Unlock()
	var waiting int32
	if p.file != nil {
		if raw, err := p.file.SyscallConn(); err == nil { // an error means it was closed, so nothing is unread
			raw.Control(func(fd uintptr) { ioctl(int(fd), syscall.TIOCINQ, uintptr(unsafe.Pointer(&waiting))) })
		}
	}
	return p.taken + int64(waiting)
}

func (p *pipe) pump(file *os.File) {
	defer close(p.done)
	defer p.ring.Close()
	defer file.Close()
	raw, err := file.SyscallConn()
	if err != nil {
		return
	}
	for {
		// A chunk is taken only when there is something to read, so a quiet process holds none.
		var chunk *[chunkSize]byte
		var n int
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			chunk = chunks.Get().(*[chunkSize]byte)
			p.taking.Lock()
			n, failed = syscall.Read(int(fd), chunk[:])
			p.taken += int64(max(0, n))
			p.taking.Unlock()
			if failed == syscall.EAGAIN {
				chunks.Put(chunk)
				chunk = nil
				return false
			}
			return true
		})
		if chunk != nil {
			if n > 0 {
				p.ring.Append(chunk[:n])
				p.moved.Add(int64(n))
			}
			chunks.Put(chunk)
		}
		if err != nil || n <= 0 && failed != syscall.EINTR {
			return
		}
	}
}
