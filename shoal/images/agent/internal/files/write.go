package files

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"syscall"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/mux"
)

// The prefix of a temporary file's name tells a watch what the final rename means.
const (
	temporaryNew = ".shoal-new-" // the rename creates a file
	temporaryMod = ".shoal-mod-" // the rename replaces a file
	randomBytes  = 8
)

type writeRequest struct {
	Op      string  `json:"op"`
	Path    pathArg `json:"path"`
	Mode    *uint32 `json:"mode"`
	Append  bool    `json:"append"`
	Parents bool    `json:"parents"`
	User    string  `json:"user"`
}

func (s *service) write(st *mux.Stream, r *writeRequest) error {
	path, err := r.Path.valid("path")
	if err != nil {
		return err
	}
	if err := checkMode(r.Mode); err != nil {
		return err
	}
	owner, err := s.ownerOf(r.User)
	if err != nil {
		return err
	}
	at, err := findPlace(path, r.Parents, owner)
	if err != nil {
		return failed("path", "open", path, err)
	}
	defer at.close()
	work := replace
	if r.Append {
		work = extend
	}
	size, err := work(st, r, at, owner)
	if err != nil {
		return failed("path", "write", path, err)
	}
	st.Reply(sizeReply{size})
	return nil
}

// place is where a file is to be written, with links followed: an open directory, a name in it, and what is there now.
type place struct {
	dir    int
	name   string
	exists bool
	now    syscall.Stat_t
}

func (p *place) close() { syscall.Close(p.dir) }

func findPlace(path string, parents bool, owner Owner) (*place, error) {
	for range 40 {
		dir, base := split(path)
		if !plain(base) || strings.HasSuffix(path, "/") {
			return nil, fault.Invalid("path", "%s names a directory: name a file", path)
		}
		var now syscall.Stat_t
		err := again(func() error { return syscall.Lstat(path, &now) })
		if err != nil && err != syscall.ENOENT {
			return nil, err
		}
		exists := err == nil
		if exists && isKind(&now, syscall.S_IFLNK) {
			target, err := readlinkAt(atCWD, path)
			if err != nil {
				return nil, err
			}
			if target[0] != '/' {
				target = join(dir, target)
			}
			path = target
			continue
		}
		if exists && !isKind(&now, syscall.S_IFREG) {
			return nil, notRegular(&now, path)
		}
		fd, err := openParent(dir, parents, owner)
		if err != nil {
			return nil, err
		}
		return &place{dir: fd, name: base, exists: exists, now: now}, nil
	}
	return nil, syscall.ELOOP
}

// attributes returns the owner and mode for a file: those requested, or those it had, or the defaults.
func (p *place) attributes(r *writeRequest, owner Owner) (Owner, uint32) {
	mode := uint32(0o644)
	if p.exists {
		mode = p.now.Mode & modes
		had := Owner{int(p.now.Uid), int(p.now.Gid)}
		if r.User == "" {
			owner = had
		} else if owner != had {
			mode &= 0o1777 // set-uid was meant for the old owner
		}
	}
	if r.Mode != nil {
		mode = *r.Mode
	}
	return owner, mode
}

// replace writes a temporary file in the same directory and renames it, so that a reader sees the old file or the new
// one.
func replace(st *mux.Stream, r *writeRequest, at *place, owner Owner) (int64, error) {
	name := temporaryName(at.exists)
	fd, err := openAt(at.dir, name, syscall.O_RDWR|syscall.O_CREAT|syscall.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return 0, err
	}
	defer syscall.Close(fd)
	published := false
	defer func() {
		if !published {
			unlinkAt(at.dir, name, 0)
		}
	}()
	size, err := receive(st, fd)
	if err != nil {
		return 0, err
	}
	owner, mode := at.attributes(r, owner)
	if err := setAttributes(fd, owner, mode); err != nil {
		return 0, err
	}
	err = renameAt(at.dir, name, at.dir, at.name, true)
	published = err == nil
	if err == syscall.EBUSY && at.exists {
		// The engine has mounted this file (such as /etc/hosts). It can be overwritten, but not replaced.
		err = overwrite(at, fd, owner, mode)
	}
	return size, err
}

func temporaryName(replaces bool) string {
	prefix := temporaryNew
	if replaces {
		prefix = temporaryMod
	}
	var random [randomBytes]byte
	rand.Read(random[:])
	return prefix + hex.EncodeToString(random[:])
}

// isTemporary reports whether a name is from temporaryName, and whether it was to replace a file.
func isTemporary(name string) (temporary, replaces bool) {
	if len(name) != len(temporaryNew)+2*randomBytes {
		return false, false
	}
	replaces = strings.HasPrefix(name, temporaryMod)
	return replaces || strings.HasPrefix(name, temporaryNew), replaces
}

// overwrite copies the temporary file into the file itself.
func overwrite(at *place, from int, owner Owner, mode uint32) error {
	fd, err := openRegular(at, syscall.O_WRONLY|syscall.O_TRUNC)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	held := buffers.Get().(*[]byte)
	defer buffers.Put(held)
	for offset := int64(0); ; {
		n, err := readAt(from, *held, offset)
		if err != nil {
			return err
		}
		if n == 0 {
			return setAttributes(fd, owner, mode)
		}
		if err := writeAll(fd, (*held)[:n]); err != nil {
			return err
		}
		offset += int64(n)
	}
}

// extend appends to the file, and makes it if it is missing. Bytes appended before an error stay, because other
// processes may have appended after them.
func extend(st *mux.Stream, r *writeRequest, at *place, owner Owner) (int64, error) {
	const flags = syscall.O_WRONLY | syscall.O_APPEND
	fd, err := openRegular(at, flags)
	if err == syscall.ENOENT {
		if fd, err = openRegular(at, flags|syscall.O_CREAT|syscall.O_EXCL); err == syscall.EEXIST {
			fd, err = openRegular(at, flags)
		}
	}
	if err != nil {
		return 0, err
	}
	defer syscall.Close(fd)
	owner, mode := at.attributes(r, owner)
	if err := setAttributes(fd, owner, mode); err != nil {
		return 0, err
	}
	return receive(st, fd)
}

// openRegular opens the file at a place. It returns an error if that is no longer a regular file.
func openRegular(at *place, flags int) (int, error) {
	fd, err := openAt(at.dir, at.name, flags|syscall.O_NOFOLLOW|oSafe, 0o600)
	if err != nil {
		return -1, err
	}
	var st syscall.Stat_t
	if err = syscall.Fstat(fd, &st); err == nil && !isKind(&st, syscall.S_IFREG) {
		err = notRegular(&st, at.name)
	}
	if err != nil {
		syscall.Close(fd)
		return -1, err
	}
	return fd, nil
}

// receive writes the stream's data up to END and returns how many bytes there were.
func receive(st *mux.Stream, fd int) (int64, error) {
	var size int64
	for {
		f, err := st.Recv()
		if errors.Is(err, io.EOF) {
			return size, nil
		}
		if err != nil {
			return size, err
		}
		err = writeAll(fd, f.Payload)
		size += int64(len(f.Payload))
		st.Took(f)
		if err != nil {
			return size, err
		}
	}
}
