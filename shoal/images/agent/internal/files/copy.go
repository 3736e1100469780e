package files

import (
	"syscall"
	"time"

	"shoal/agent/internal/mux"
)

// copier copies trees from one open directory into another. It keeps modes and times, and owners as far as the acting
// user may give files away.
type copier struct{ st *mux.Stream }

const (
	leastShared = 64 << 10
	// mostShared bounds how long one call takes that copies after all.
	mostShared = 256 << 20
)

func (c *copier) copy(from int, name string, to int, as string, depth int) error {
	at, err := lstatAt(from, name)
	if err != nil {
		return err
	}
	if lost(c.st) {
		return mux.ErrLost
	}
	switch at.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		return c.file(from, name, to, as)
	case syscall.S_IFDIR:
		return c.directory(from, name, to, as, depth)
	case syscall.S_IFLNK:
		target, err := readlinkAt(from, name)
		if err != nil {
			return err
		}
		if err := symlinkAt(target, to, as); err != nil {
			return err
		}
		return unlessForbidden(syscall.Fchownat(to, as, int(at.Uid), int(at.Gid), atNoFollow))
	default:
		if err := again(func() error { return syscall.Mknodat(to, as, at.Mode, int(at.Rdev)) }); err != nil {
			return err
		}
		return unlessForbidden(syscall.Fchownat(to, as, int(at.Uid), int(at.Gid), atNoFollow))
	}
}

func (c *copier) file(from int, name string, to int, as string) error {
	source, _, err := openToRead(from, name, syscall.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer syscall.Close(source)
	target, err := openAt(to, as, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer syscall.Close(target)
	if err := copyContent(c.st, source, target); err != nil {
		return err
	}
	return sameAttributes(source, target)
}

// copyContent copies the bytes of one open file into another, which is empty. Holes stay holes. It stops if the stream,
// if there is one, is lost.
func copyContent(st *mux.Stream, from, to int) error {
	held := buffers.Get().(*[]byte)
	defer buffers.Put(held)
	var at syscall.Stat_t
	if err := syscall.Fstat(from, &at); err != nil {
		return err
	}
	if done, err := shareContent(st, from, to, &at); done || err != nil {
		return err
	}
	out := sparseWriter{fd: to}
	for {
		if lost(st) {
			return mux.ErrLost
		}
		data, more := dataFrom(from, out.at)
		if !more {
			data = max(at.Size, out.at)
		}
		out.skip(data - out.at)
		n, err := readAt(from, *held, data)
		if err != nil {
			return err
		}
		if n == 0 {
			return out.close()
		}
		if _, err := out.Write((*held)[:n]); err != nil {
			return err
		}
	}
}

// shareContent has the file system copy the bytes itself, which takes it no time where the two files may share them. It
// reports false, with nothing written, if it cannot, or if the file has holes, which it might fill.
func shareContent(st *mux.Stream, from, to int, at *syscall.Stat_t) (bool, error) {
	if at.Size < leastShared || at.Blocks*512 < at.Size {
		return false, nil
	}
	for copied := int64(0); copied < at.Size; {
		if lost(st) {
			return false, mux.ErrLost
		}
		n, err := copyFileRange(from, to, int(min(at.Size-copied, mostShared)))
		if copied == 0 && err != nil {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if n == 0 { // the file has become shorter
			return copied > 0, nil
		}
		copied += int64(n)
	}
	return true, nil
}

func (c *copier) directory(from int, name string, to int, as string, depth int) error {
	if depth == maxDepth {
		return errTooDeep
	}
	source, err := openAt(from, name, oDirNoFollow, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(source)
	if err := again(func() error { return syscall.Mkdirat(to, as, 0o700) }); err != nil {
		return err
	}
	target, err := openAt(to, as, oDirNoFollow, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(target)
	names, err := namesIn(source)
	if err != nil {
		return err
	}
	for _, below := range names {
		if err := c.copy(source, below, target, below, depth+1); err != nil && err != syscall.ENOENT {
			return err
		}
	}
	return sameAttributes(source, target)
}

// unlessForbidden drops the error of a user who may not give files away.
func unlessForbidden(err error) error {
	if err == syscall.EPERM {
		return nil
	}
	return err
}

// sameAttributes gives the target the mode and time of modification of the source, and its owner if the acting user may
// do that. If not, the target loses set-uid and set-gid, which were meant for the other owner.
func sameAttributes(source, target int) error {
	var at syscall.Stat_t
	if err := syscall.Fstat(source, &at); err != nil {
		return err
	}
	mode := at.Mode & modes
	if err := setOwner(target, at.Uid, at.Gid); err == syscall.EPERM {
		mode &= 0o1777
	} else if err != nil {
		return err
	}
	if err := setMode(target, mode); err != nil {
		return err
	}
	return setModified(target, time.Unix(at.Mtim.Sec, at.Mtim.Nsec))
}
