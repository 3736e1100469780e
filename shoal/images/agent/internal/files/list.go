package files

import (
	"encoding/json"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/frame"
	"shoal/agent/internal/mux"
)

const (
	maxEntries = 256
	// batchBytes bounds an event of `list`, so that it fits into one frame.
	batchBytes = 512 << 10
)

// entry describes the file at a path. Name, Path and Target are encoded by text.
type entry struct {
	Name    any    `json:"name"`
	Path    any    `json:"path"`
	Kind    string `json:"kind"`
	Size    int64  `json:"size"`
	Mode    uint32 `json:"mode"`
	UID     uint32 `json:"uid"`
	GID     uint32 `json:"gid"`
	MtimeNS int64  `json:"mtime_ns"`
	Target  any    `json:"target,omitempty"`
}

func newEntry(name, path string, st *syscall.Stat_t) entry {
	return entry{
		Name: text(name), Path: text(path), Kind: kindOf(st), Size: max(st.Size, 0), Mode: st.Mode & modes,
		UID: st.Uid, GID: st.Gid, MtimeNS: nanoseconds(st.Mtim),
	}
}

func kindOf(st *syscall.Stat_t) string {
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		return "file"
	case syscall.S_IFDIR:
		return "dir"
	case syscall.S_IFLNK:
		return "link"
	}
	return "other"
}

// nanoseconds clamps a time to 64 bits. Code in the sandbox may set any time on a file.
func nanoseconds(t syscall.Timespec) int64 {
	const limit = math.MaxInt64/1_000_000_000 - 1
	return min(max(t.Sec, -limit), limit)*1_000_000_000 + t.Nsec
}

type statRequest struct {
	Op     string  `json:"op"`
	Path   pathArg `json:"path"`
	Follow bool    `json:"follow"`
	User   string  `json:"user"`
}

func (s *service) stat(st *mux.Stream, r *statRequest) error {
	path, err := r.Path.valid("path")
	if err != nil {
		return err
	}
	as, err := s.enter(r.User)
	if err != nil {
		return err
	}
	defer as.leave()
	look := syscall.Lstat
	if r.Follow {
		look = syscall.Stat
	}
	var found syscall.Stat_t
	if err := again(func() error { return look(path, &found) }); err != nil {
		return failed("path", "stat", path, err)
	}
	shown := strings.TrimRight(path, "/")
	dir, name := split(path)
	if shown == "" {
		shown, name = "/", "/"
	} else if !plain(name) {
		// "." and ".." are not names, so return the real name and path.
		if shown, err = filepath.EvalSymlinks(path); err != nil {
			return failed("path", "stat", path, err)
		}
		if dir, name = split(shown); shown == "/" {
			name = "/"
		}
	}
	e := newEntry(name, shown, &found)
	if e.Kind == "link" {
		target, err := readlinkAt(atCWD, join(dir, name))
		if err != nil {
			return failed("path", "readlink", path, err)
		}
		e.Target = text(target)
	}
	as.reply(st, e)
	return nil
}

// listRequest asks for the entries of a directory, sorted by name: those whose names come after After, Limit of them at
// most; 0: all.
type listRequest struct {
	Op    string  `json:"op"`
	Path  pathArg `json:"path"`
	After pathArg `json:"after"`
	Limit int     `json:"limit"`
	User  string  `json:"user"`
}

func (s *service) list(st *mux.Stream, r *listRequest) error {
	path, err := r.Path.valid("path")
	if err != nil {
		return err
	}
	if r.After.wrong != "" || r.Limit < 0 {
		return fault.Invalid("after", "give a name, and a limit of 0 or more")
	}
	as, err := s.enter(r.User)
	if err != nil {
		return err
	}
	defer as.leave()
	dir, err := openAt(atCWD, path, oDirectory, 0)
	if err != nil {
		return failed("path", "open", path, err)
	}
	defer syscall.Close(dir)
	names, err := s.names(dir, r.After.path, r.Limit)
	if err != nil {
		return failed("path", "list", path, err)
	}
	b := &batch{st: st, as: as}
	for _, name := range names {
		e, err := entryIn(dir, name, join(path, name))
		if err == syscall.ENOENT {
			continue // it was removed meanwhile
		}
		if err == nil {
			err = b.add(e)
		}
		if err != nil {
			return failed("path", "list", path, err)
		}
	}
	if err := b.send(); err != nil {
		return err
	}
	as.reply(st, empty{})
	return nil
}

// names returns the names of a directory, in their order, that come after one: limit of them, or with 0 all.
func (s *service) names(dir int, after string, limit int) ([]string, error) {
	if limit > 0 {
		return s.pages.page(dir, after, limit)
	}
	names, err := namesIn(dir)
	return firstOf(slices.DeleteFunc(names, func(name string) bool { return name <= after }), 0), err
}

func firstOf(names []string, limit int) []string {
	slices.Sort(names)
	if limit > 0 && len(names) > limit {
		names = names[:limit]
	}
	return names
}

func entryIn(dir int, name, path string) (entry, error) {
	at, err := lstatAt(dir, name)
	if err != nil {
		return entry{}, err
	}
	e := newEntry(name, path, &at)
	if e.Kind == "link" {
		target, err := readlinkAt(dir, name)
		if err == syscall.EINVAL {
			err = syscall.ENOENT // it is no longer a link
		}
		if err != nil {
			return entry{}, err
		}
		e.Target = text(target)
	}
	return e, nil
}

// batch gathers entries for one event.
type batch struct {
	st    *mux.Stream
	as    *actor
	buf   []byte
	count int
}

func (b *batch) add(e entry) error {
	encoded, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if b.count == maxEntries || len(b.buf)+len(encoded) > batchBytes {
		if err := b.send(); err != nil {
			return err
		}
	}
	if b.count == 0 {
		b.buf = append(append(b.buf[:0], make([]byte, frame.HeaderSize)...), `{"entries":[`...)
	} else {
		b.buf = append(b.buf, ',')
	}
	b.buf = append(b.buf, encoded...)
	b.count++
	return nil
}

func (b *batch) send() error {
	if b.count == 0 {
		return nil
	}
	if lost(b.st) {
		return mux.ErrLost
	}
	b.buf = append(b.buf, "]}"...)
	frame.PutHeader(b.buf, frame.Event, b.st.ID(), len(b.buf)-frame.HeaderSize)
	b.count = 0
	return b.as.outside(func() error {
		if err := b.st.SendFrames(b.buf); err != nil {
			return mux.ErrLost
		}
		return nil
	})
}
