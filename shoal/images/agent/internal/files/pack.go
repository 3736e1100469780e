package files

import (
	"archive/tar"
	"slices"
	"syscall"
	"time"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/mux"
)

type packRequest struct {
	Op   string  `json:"op"`
	Path pathArg `json:"path"`
	User string  `json:"user"`
}

func (s *service) pack(st *mux.Stream, r *packRequest) error {
	path, err := r.Path.valid("path")
	if err != nil {
		return err
	}
	as, err := s.enter(r.User)
	if err != nil {
		return err
	}
	defer as.leave()
	out := newSender(st, as)
	defer out.close()
	p := &packer{st: st, tar: tar.NewWriter(out)}
	var root syscall.Stat_t
	err = again(func() error { return syscall.Stat(path, &root) })
	switch {
	case err != nil:
	case isKind(&root, syscall.S_IFDIR):
		err = p.root(path)
	default:
		// A single file becomes one member. A link at the path itself is followed, as it is for a tree.
		_, base := split(path)
		err = p.file(atCWD, path, base, 0)
	}
	if err == nil {
		err = p.tar.Close()
	}
	if err == nil {
		err = out.flush()
	}
	if err != nil {
		return failed("path", "pack", path, err)
	}
	as.reply(st, empty{})
	return nil
}

// packer writes trees into an archive. It leaves out sockets and devices, which would be useless in a copy.
type packer struct {
	st  *mux.Stream
	tar *tar.Writer
}

func (p *packer) root(path string) error {
	dir, err := openAt(atCWD, path, oDirectory, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(dir)
	return p.below(dir, "", 0)
}

// below packs the contents of an open directory. prefix is its name in the archive, with a slash.
func (p *packer) below(dir int, prefix string, depth int) error {
	if depth == maxDepth {
		return errTooDeep
	}
	names, err := namesIn(dir)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		if lost(p.st) {
			return mux.ErrLost
		}
		// A file that was removed meanwhile is left out.
		if err := p.member(dir, name, prefix+name, depth); err != nil && err != syscall.ENOENT {
			return failed("path", "pack", prefix+name, err)
		}
	}
	return nil
}

func (p *packer) member(dir int, name, as string, depth int) error {
	at, err := lstatAt(dir, name)
	if err != nil {
		return err
	}
	switch at.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		return p.file(dir, name, as, syscall.O_NOFOLLOW)
	case syscall.S_IFDIR:
		fd, err := openAt(dir, name, oDirNoFollow, 0)
		if err != nil {
			return err
		}
		defer syscall.Close(fd)
		if err := p.tar.WriteHeader(header(tar.TypeDir, as+"/", &at)); err != nil {
			return err
		}
		return p.below(fd, as+"/", depth+1)
	case syscall.S_IFLNK:
		target, err := readlinkAt(dir, name)
		if err != nil {
			return err
		}
		h := header(tar.TypeSymlink, as, &at)
		h.Linkname = target
		return p.tar.WriteHeader(h)
	case syscall.S_IFIFO:
		return p.tar.WriteHeader(header(tar.TypeFifo, as, &at))
	}
	return nil
}

func header(kind byte, name string, at *syscall.Stat_t) *tar.Header {
	return &tar.Header{
		Typeflag: kind, Name: name, Mode: int64(at.Mode & modes), Uid: int(at.Uid), Gid: int(at.Gid),
		ModTime: time.Unix(at.Mtim.Sec, 0),
	}
}

// file packs a file up to the size that it had when it was opened.
func (p *packer) file(dir int, name, as string, flags int) error {
	fd, _, err := openToRead(dir, name, flags)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	var at syscall.Stat_t
	if err := syscall.Fstat(fd, &at); err != nil {
		return err
	}
	h := header(tar.TypeReg, as, &at)
	h.Size = at.Size
	if err := p.tar.WriteHeader(h); err != nil {
		return err
	}
	held := buffers.Get().(*[]byte)
	defer buffers.Put(held)
	for offset := int64(0); offset < at.Size; {
		n, err := readAt(fd, (*held)[:min(int64(len(*held)), at.Size-offset)], offset)
		if err != nil {
			return err
		}
		if n == 0 {
			return fault.New(
				fault.FailedPrecondition,
				"path: %s shrank while it was packed: try again when no process writes to it", as,
			)
		}
		if _, err := p.tar.Write((*held)[:n]); err != nil {
			return err
		}
		offset += int64(n)
	}
	return nil
}
