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
	as, err := s.enter(r.User)
	if err != nil {
		return err
	}
	defer as.leave()
	at, err := findPlace(path, r.Parents)
	if err != nil {
		return failed("path", "open", path, err)
	}
	defer at.close()
	w := &fileWriter{st: st, as: as, at: at, mode: r.Mode}
	work := w.replace
	if r.Append {
		work = w.extend
	}
	size, err := work()
	if err != nil {
		return failed("path", "write", path, err)
	}
	as.reply(st, sizeReply{size})
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

func findPlace(path string, parents bool) (*place, error) {
	for range 40 {
		dir, base := split(path)
		if !plain(base) || strings.HasSuffix(path, "/") {
			return nil, fault.IsDirectory("path", path, "name a file")
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
		fd, err := openParent(dir, parents)
		if err != nil {
			return nil, err
		}
		return &place{dir: fd, name: base, exists: exists, now: now}, nil
	}
	return nil, syscall.ELOOP
}

// fileWriter writes the data of one request to a place.
type fileWriter struct {
	st   *mux.Stream
	as   *actor
	at   *place
	mode *uint32
}

// finalMode returns the mode for the file: the one requested, the one that it had, or the default.
func (w *fileWriter) finalMode() uint32 {
	switch {
	case w.mode != nil:
		return *w.mode
	case w.at.exists:
		return w.at.now.Mode & modes
	}
	return fileDefault &^ umask
}

// replace writes a temporary file in the same directory and renames it, so that a reader sees the old file or the new
// one. The file keeps its owner. A user who may write the file, but may not replace it or give it back to its owner,
// writes into the file itself.
func (w *fileWriter) replace() (int64, error) {
	if err := w.checkWritable(); err != nil {
		return 0, err
	}
	name := temporaryName(w.at.exists)
	fd, err := openAt(w.at.dir, name, syscall.O_RDWR|syscall.O_CREAT|syscall.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err == syscall.EACCES && w.at.exists {
		return w.refill()
	}
	if err != nil {
		return 0, err
	}
	defer syscall.Close(fd)
	published := false
	defer func() {
		if !published {
			unlinkAt(w.at.dir, name, 0)
		}
	}()
	size, err := w.receive(fd)
	if err != nil {
		return 0, err
	}
	if w.at.exists {
		err = setOwner(fd, w.at.now.Uid, w.at.now.Gid)
	}
	if err == nil {
		err = setMode(fd, w.finalMode())
	}
	if err == nil {
		err = renameAt(w.at.dir, name, w.at.dir, w.at.name, true)
		published = err == nil
	}
	if w.at.exists && (err == syscall.EBUSY || err == syscall.EPERM || err == syscall.EACCES) {
		// The engine has mounted this file (such as /etc/hosts), or it belongs to another user. It can be overwritten, but
		// not replaced.
		err = w.overwrite(fd)
	}
	return size, err
}

// checkWritable returns an error if the file exists and the user may not write it. A rename would not ask that.
func (w *fileWriter) checkWritable() error {
	if !w.at.exists || w.as.user == nil {
		return nil // root may write every file that the kernel lets it replace
	}
	fd, err := openRegular(w.at, syscall.O_WRONLY)
	if err == syscall.ETXTBSY || err == syscall.ENOENT {
		return nil // a program that runs may be replaced
	}
	if err == nil {
		syscall.Close(fd)
	}
	return err
}

// refill writes the data into the file itself, where the user may make no other file beside it.
func (w *fileWriter) refill() (int64, error) {
	fd, err := openRegular(w.at, syscall.O_WRONLY)
	if err != nil {
		return 0, err
	}
	defer syscall.Close(fd)
	if err := w.setRequestedMode(fd); err != nil {
		return 0, err
	}
	if err := syscall.Ftruncate(fd, 0); err != nil {
		return 0, err
	}
	return w.receive(fd)
}

// setRequestedMode sets the mode of a file that stays, if the request has one.
func (w *fileWriter) setRequestedMode(fd int) error {
	if w.mode == nil {
		return nil
	}
	return setMode(fd, *w.mode)
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
func (w *fileWriter) overwrite(from int) error {
	fd, err := openRegular(w.at, syscall.O_WRONLY)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	if err := w.setRequestedMode(fd); err != nil {
		return err
	}
	if err := syscall.Ftruncate(fd, 0); err != nil {
		return err
	}
	return copyContent(nil, from, fd)
}

// extend appends to the file, and makes it if it is missing. Bytes appended before an error stay, because other
// processes may have appended after them.
func (w *fileWriter) extend() (int64, error) {
	const flags = syscall.O_WRONLY | syscall.O_APPEND
	fd, err := openRegular(w.at, flags)
	if err == syscall.ENOENT {
		if fd, err = openRegular(w.at, flags|syscall.O_CREAT|syscall.O_EXCL); err == nil {
			err = setMode(fd, w.finalMode())
		} else if err == syscall.EEXIST {
			fd, err = openRegular(w.at, flags)
		}
	}
	if err != nil {
		return 0, err
	}
	defer syscall.Close(fd)
	if err := w.setRequestedMode(fd); err != nil {
		return 0, err
	}
	out := appender{fd: fd}
	err = w.receiveInto(&out)
	return out.size, err
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
	if err == nil && ofAgent(fd, &st) {
		err = syscall.EACCES
	}
	if err != nil {
		syscall.Close(fd)
		return -1, err
	}
	return fd, nil
}

// receive writes the stream's data up to END into a new or emptied file and returns how many bytes there were.
func (w *fileWriter) receive(fd int) (int64, error) {
	out := sparseWriter{fd: fd}
	err := w.receiveInto(&out)
	if err == nil {
		err = out.close()
	}
	return out.at, err
}

// receiveInto writes the stream's data up to END.
func (w *fileWriter) receiveInto(out io.Writer) error {
	return w.as.outside(func() error {
		for {
			f, err := w.st.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			_, err = out.Write(f.Payload)
			w.st.Took(f)
			if err != nil {
				return err
			}
		}
	})
}

// appender writes to the end of a file.
type appender struct {
	fd   int
	size int64
}

func (a *appender) Write(p []byte) (int, error) {
	a.size += int64(len(p))
	return len(p), writeAll(a.fd, p)
}
