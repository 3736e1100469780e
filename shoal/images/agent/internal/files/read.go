package files

import (
	"math"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/frame"
	"shoal/agent/internal/mux"
)

// chunk is the payload size of a bulk frame: large enough that system calls cost little, small enough for the CPU
// cache.
const chunk = 256 << 10

// buffers hold a header, a chunk, and room for the REPLY after the last chunk.
var buffers = sync.Pool{New: func() any { b := make([]byte, frame.HeaderSize+chunk+256); return &b }}

// These file systems do not report the size of their files.
const (
	procFS    = 0x9fa0
	sysFS     = 0x62656572
	cgroupFS  = 0x27e0eb
	cgroup2FS = 0x63677270
)

type readRequest struct {
	Op     string  `json:"op"`
	Path   pathArg `json:"path"`
	Offset int64   `json:"offset"`
	Length *int64  `json:"length"`
	User   string  `json:"user"`
}

type sizeReply struct {
	Size int64 `json:"size"`
}

func (s *service) read(st *mux.Stream, r *readRequest) error {
	path, err := r.Path.valid("path")
	if err != nil {
		return err
	}
	length := int64(-1)
	if r.Length != nil {
		length = *r.Length
	}
	if r.Offset < 0 {
		return fault.Invalid("offset", "%d is negative", r.Offset)
	}
	if length < -1 {
		return fault.Invalid("length", "%d is neither a size nor -1, which means to the end", length)
	}
	as, err := s.enter(r.User)
	if err != nil {
		return err
	}
	fd, size, err := openToRead(atCWD, path, 0)
	as.leave() // only to open the file takes permissions
	if err != nil {
		return failed("path", "open", path, err)
	}
	defer syscall.Close(fd)
	end := size
	if length >= 0 && length < size-r.Offset {
		end = r.Offset + length
	}
	return failed("path", "read", path, sendFile(st, fd, r.Offset, end))
}

// openToRead opens a regular file and returns its size, or math.MaxInt64 if its file system reports none. It refuses
// other kinds of files, and never waits for the other end of a FIFO or for a device.
func openToRead(dir int, name string, flags int) (fd int, size int64, err error) {
	if fd, err = openAt(dir, name, syscall.O_RDONLY|oSafe|flags, 0); err != nil {
		return -1, 0, err
	}
	var st syscall.Stat_t
	if err = syscall.Fstat(fd, &st); err == nil && !isKind(&st, syscall.S_IFREG) {
		err = notRegular(&st, name)
	}
	if err == nil && ofAgent(fd, &st) {
		err = syscall.EACCES
	}
	if err != nil {
		syscall.Close(fd)
		return -1, 0, err
	}
	if st.Size == 0 && sizeless(fd) {
		return fd, math.MaxInt64, nil
	}
	return fd, st.Size, nil
}

func notRegular(st *syscall.Stat_t, path string) error {
	if isKind(st, syscall.S_IFDIR) {
		return fault.IsDirectory("path", path, "name a file")
	}
	return fault.Invalid("path", "%s is not a regular file: use it with a command in the sandbox", path)
}

func sizeless(fd int) bool {
	kind := fileSystem(fd)
	return kind == procFS || kind == sysFS || kind == cgroupFS || kind == cgroup2FS
}

func fileSystem(fd int) int64 {
	var fs syscall.Statfs_t
	if err := again(func() error { return syscall.Fstatfs(fd, &fs) }); err != nil {
		return 0
	}
	return int64(fs.Type)
}

// ofAgent reports whether an open file shows the agent itself, such as its memory (/proc/self/mem) or its environment.
// The kernel opens those to the agent, as to every process its own, but it would refuse them to all other processes.
func ofAgent(fd int, st *syscall.Stat_t) bool {
	const others = 0o044
	if st.Mode&others != 0 || fileSystem(fd) != procFS {
		return false
	}
	path, err := readlinkAt(atCWD, "/proc/self/fd/"+strconv.Itoa(fd))
	return err != nil || strings.HasPrefix(path, ownProc)
}

var ownProc = "/proc/" + strconv.Itoa(os.Getpid()) + "/"

// sendFile sends the bytes between two offsets, or up to the end of the file, and then the reply.
func sendFile(st *mux.Stream, fd int, at, end int64) error {
	held := buffers.Get().(*[]byte)
	defer buffers.Put(held)
	buf := *held
	begin := at
	for at < end {
		room, err := st.Reserve(int(min(chunk, end-at)))
		if err != nil {
			return err
		}
		n, err := readAt(fd, buf[frame.HeaderSize:frame.HeaderSize+room], at)
		st.Unreserve(room - n)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		at += int64(n)
		frame.PutHeader(buf, frame.Data, st.ID(), n)
		out := buf[:frame.HeaderSize+n]
		if at == end {
			// A small file, the usual case, is sent in one write.
			st.ReplyFrames(appendSize(out, st.ID(), at-begin))
			return nil
		}
		if err := st.SendFrames(out); err != nil {
			return mux.ErrLost
		}
	}
	st.Reply(sizeReply{at - begin})
	return nil
}

func readAt(fd int, p []byte, at int64) (n int, err error) {
	err = again(func() error { n, err = syscall.Pread(fd, p, at); return err })
	if err == syscall.EAGAIN {
		return 0, fault.New(fault.FailedPrecondition, "it has no data now, and reading it would block")
	}
	return max(n, 0), err
}
