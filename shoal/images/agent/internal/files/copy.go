package files

import (
	"syscall"
	"time"

	"shoal/agent/internal/mux"
)

// copier copies trees from one open directory into another. It keeps owners, modes and times.
type copier struct{ st *mux.Stream }

func (c *copier) copy(from int, name string, to int, as string, depth int) error {
	at, err := lstatAt(from, name)
	if err != nil {
		return err
	}
	if lost(c.st) {
		return mux.ErrLost
	}
	owner := Owner{int(at.Uid), int(at.Gid)}
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
		return syscall.Fchownat(to, as, owner.UID, owner.GID, atNoFollow)
	default:
		if err := again(func() error { return syscall.Mknodat(to, as, at.Mode, int(at.Rdev)) }); err != nil {
			return err
		}
		return syscall.Fchownat(to, as, owner.UID, owner.GID, atNoFollow)
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
	held := buffers.Get().(*[]byte)
	defer buffers.Put(held)
	for offset := int64(0); ; {
		if lost(c.st) {
			return mux.ErrLost
		}
		n, err := readAt(source, *held, offset)
		if err != nil {
			return err
		}
		if n == 0 {
			return sameAttributes(source, target)
		}
		if err := writeAll(target, (*held)[:n]); err != nil {
			return err
		}
		offset += int64(n)
	}
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

// sameAttributes gives the target the owner, mode and time of modification of the source.
func sameAttributes(source, target int) error {
	var at syscall.Stat_t
	if err := syscall.Fstat(source, &at); err != nil {
		return err
	}
	if err := setAttributes(target, Owner{int(at.Uid), int(at.Gid)}, at.Mode&modes); err != nil {
		return err
	}
	return setModified(target, time.Unix(at.Mtim.Sec, at.Mtim.Nsec))
}
