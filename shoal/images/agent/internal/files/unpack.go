package files

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/mux"
)

type unpackRequest struct {
	Op   string  `json:"op"`
	Path pathArg `json:"path"`
	User string  `json:"user"`
}

type unpackReply struct {
	Files int64 `json:"files"`
	Bytes int64 `json:"bytes"`
}

func (s *service) unpack(st *mux.Stream, r *unpackRequest) error {
	path, err := r.Path.valid("path")
	if err != nil {
		return err
	}
	as, err := s.enter(r.User)
	if err != nil {
		return err
	}
	defer as.leave()
	if err := mkdir(path, true, nil); err != nil {
		return failed("path", "mkdir", path, err)
	}
	root, err := openRoot(path)
	if err != nil {
		return failed("path", "open", path, err)
	}
	defer root.Close()
	in := &receiver{st: st, as: as}
	defer in.release()
	u := &unpacker{st: st, tree: tree{root}, tar: tar.NewReader(in)}
	err = u.all()
	if restored := u.restoreModes(); err == nil {
		err = restored
	}
	if err != nil {
		return failed("path", "unpack", path, err)
	}
	as.leave()
	if err := in.drain(); err != io.EOF {
		return err
	}
	st.Reply(unpackReply{u.files, u.bytes})
	return nil
}

// openRoot opens a directory as an os.Root, which no path can leave. It opens a descriptor first, because os.OpenRoot
// would wait if the path has become a FIFO.
func openRoot(path string) (*os.Root, error) {
	fd, err := openAt(atCWD, path, oDirectory, 0)
	if err != nil {
		return nil, err
	}
	defer syscall.Close(fd)
	return os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", fd))
}

type unpacker struct {
	st   *mux.Stream
	tree tree
	tar  *tar.Reader

	files, bytes int64
	// closed holds the directories whose final mode forbids their owner to write into them.
	closed []closedDirectory
}

type closedDirectory struct {
	name string
	mode uint32
}

const maxClosed = 1 << 16

func (u *unpacker) all() error {
	for {
		h, err := u.tar.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return archiveError(err)
		}
		if lost(u.st) {
			return mux.ErrLost
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		name, err := memberName(h.Name)
		if err == nil {
			err = u.member(h, name)
		}
		if err != nil {
			return memberError(h.Name, err)
		}
	}
}

func (u *unpacker) member(h *tar.Header, name string) error {
	mode := uint32(h.Mode) & modes
	if name == "." {
		if h.Typeflag == tar.TypeDir {
			return nil // the destination stays as it is
		}
		return fault.Invalid("archive", "a member that is not a directory has no name")
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return u.directory(name, mode)
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		if err := u.file(h, name, mode); err != nil {
			return err
		}
	case tar.TypeSymlink:
		// The link may lead anywhere: nothing is unpacked through a link that leads out of the destination.
		if err := u.tree.put(name, func() error { return u.tree.root.Symlink(h.Linkname, name) }); err != nil {
			return err
		}
	case tar.TypeLink:
		target, err := memberName(h.Linkname)
		if err != nil {
			return err
		}
		if target == name {
			return nil
		}
		if err := u.tree.put(name, func() error { return u.tree.root.Link(target, name) }); err != nil {
			return err
		}
	case tar.TypeFifo:
		if err := u.tree.fifo(name, mode); err != nil {
			return err
		}
	default:
		return fault.Invalid("archive", "it is a device or something else that cannot be unpacked: leave it out")
	}
	u.files++
	return nil
}

// directory makes a directory that is open to its owner until all is unpacked, because a user other than root cannot
// ignore modes.
func (u *unpacker) directory(name string, mode uint32) error {
	made, err := u.tree.directory(name, mode|0o700)
	if err != nil || !made || mode&0o700 == 0o700 {
		return err
	}
	if len(u.closed) == maxClosed {
		return fault.New(
			fault.QuotaExceeded,
			"more than %d directories forbid their owner access: give their owner permissions", maxClosed,
		)
	}
	u.closed = append(u.closed, closedDirectory{name, mode})
	return nil
}

func (u *unpacker) file(h *tar.Header, name string, mode uint32) error {
	file, err := u.tree.create(name)
	if err != nil {
		return err
	}
	defer file.Close()
	n, err := u.content(int(file.Fd()))
	u.bytes += n
	if err == nil {
		err = setMode(int(file.Fd()), mode)
	}
	if err == nil {
		err = setModified(int(file.Fd()), h.ModTime)
	}
	if err != nil {
		u.tree.root.Remove(name) // leave no incomplete file
	}
	return err
}

// content writes the member's bytes and returns how many there were. A sparse member may hold far more bytes than the
// archive, so it also checks here whether the client is gone.
func (u *unpacker) content(fd int) (int64, error) {
	held := buffers.Get().(*[]byte)
	defer buffers.Put(held)
	out := sparseWriter{fd: fd}
	for {
		n, err := u.tar.Read(*held)
		if _, writeErr := out.Write((*held)[:n]); writeErr != nil {
			return out.at, writeErr
		}
		if err == io.EOF {
			return out.at, out.close()
		}
		if err != nil {
			return out.at, archiveError(err)
		}
		if lost(u.st) {
			return out.at, mux.ErrLost
		}
	}
}

func (u *unpacker) restoreModes() error {
	var first error
	for i := len(u.closed) - 1; i >= 0; i-- {
		if err := u.tree.setMode(u.closed[i].name, u.closed[i].mode); err != nil && first == nil && !errors.Is(err, os.ErrNotExist) {
			first = memberError(u.closed[i].name, err)
		}
	}
	return first
}

// memberName returns a member's name below the destination, or "." for the destination itself.
func memberName(name string) (string, error) {
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", fault.Invalid("archive", "its name contains ..")
		}
		if part != "" && part != "." {
			parts = append(parts, part)
		}
	}
	if strings.HasPrefix(name, "/") || strings.IndexByte(name, 0) >= 0 || len(name) >= maxPath {
		return "", fault.Invalid("archive", "its name is absolute, too long or holds a NUL byte")
	}
	if len(parts) == 0 {
		return ".", nil
	}
	return strings.Join(parts, "/"), nil
}

func archiveError(err error) error {
	switch {
	case errors.Is(err, mux.ErrLost):
		return mux.ErrLost
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fault.Invalid("archive", "it ends in the middle of a member")
	}
	return fault.Invalid("archive", "it is not a tar archive, or it is compressed (send it uncompressed): %v", err)
}

// memberError adds the member's name to an error.
func memberError(name string, err error) error {
	if errors.Is(err, mux.ErrLost) {
		return err
	}
	var ofTwo *os.LinkError // package fault recognizes a path that leaves the root only in an os.PathError
	if errors.As(err, &ofTwo) {
		err = &os.PathError{Op: ofTwo.Op, Path: ofTwo.New, Err: ofTwo.Err}
	}
	f := *fault.From(err)
	f.Message = fmt.Sprintf("%.300q: %s", name, f.Message)
	return &f
}
