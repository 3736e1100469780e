package files

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/frame"
	"shoal/agent/internal/mux"
)

const (
	maxWatches = 8192
	// pairWait is how long the second event of a move may come after the first.
	pairWait = 20 * time.Millisecond
	// flushAt is how many bytes are gathered for one write.
	flushAt = 256 << 10
)

type watchRequest struct {
	Op        string  `json:"op"`
	Path      pathArg `json:"path"`
	Recursive bool    `json:"recursive"`
	User      string  `json:"user"`
}

type watching struct {
	Watching bool `json:"watching"`
}

type change struct {
	Kind string `json:"kind"`
	Path any    `json:"path"`
	To   any    `json:"to,omitempty"`
}

type overflow struct {
	Overflow bool `json:"overflow"`
}

func (s *service) watch(st *mux.Stream, r *watchRequest) error {
	path, err := r.Path.valid("path")
	if err != nil {
		return err
	}
	as, err := s.enter(r.User)
	if err != nil {
		return err
	}
	defer as.leave()
	fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC | syscall.IN_NONBLOCK)
	if err != nil {
		return failed("path", "watch", path, err)
	}
	source := os.NewFile(uintptr(fd), "inotify")
	defer source.Close()
	w := &watcher{as: as, tell: teller{st: st, as: as}, dirs: directories{fd: fd, recursive: r.Recursive, most: maxWatches}}
	if err := w.begin(path); err != nil {
		return failed("path", "watch", path, err)
	}
	as.leave()
	if err := st.Event(watching{true}); err != nil {
		return err
	}
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-st.Done():
			source.Close() // ends follow
		case <-ended:
		}
	}()
	if err := w.follow(source); !lost(st) {
		return failed("path", "watch", path, err)
	}
	return mux.ErrLost
}

// watcher turns the kernel's events into changes.
type watcher struct {
	as   *actor
	tell teller
	dirs directories
	// left is the first of the two events of a move, while the second may still follow.
	left *leaving
}

type leaving struct {
	cookie uint32
	path   string
	name   string
	isDir  bool
}

// begin watches a directory. For a file it watches the file's directory, so that the watch survives a replaced file.
func (w *watcher) begin(path string) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	info, err := os.Lstat(real)
	if err != nil {
		return err
	}
	shown := strings.TrimRight(path, "/")
	if !info.IsDir() {
		dir, base := split(shown)
		realDir, realBase := split(real)
		if base != realBase {
			dir = realDir // the path is a link, and the changes happen to its target
		}
		w.tell.only = join(dir, realBase)
		w.dirs.recursive = false
		real, shown = realDir, dir
	}
	w.dirs.real, w.dirs.shown = strings.TrimRight(real, "/"), strings.TrimRight(shown, "/")
	return w.dirs.rebuild()
}

// follow reads events until the source is closed.
func (w *watcher) follow(source *os.File) error {
	buf := make([]byte, 64<<10)
	waiting := false
	for {
		if pending := w.left != nil; pending || waiting {
			deadline := time.Time{}
			if pending {
				deadline = time.Now().Add(pairWait)
			}
			if err := source.SetReadDeadline(deadline); err != nil {
				return err
			}
			waiting = pending
		}
		n, err := source.Read(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			w.leftForGood()
		case err != nil:
			return err
		default:
			if err := w.takeAll(buf[:n]); err != nil {
				return err
			}
		}
		if err := w.tell.flush(); err != nil {
			return err
		}
	}
}

// takeAll acts as the user meanwhile, because new directories may be watched only if the user may read them.
func (w *watcher) takeAll(events []byte) error {
	if err := w.as.enter(); err != nil {
		return err
	}
	defer w.as.leave()
	eachEvent(events, w.take)
	return nil
}

func (w *watcher) take(e event) {
	if e.mask&syscall.IN_Q_OVERFLOW != 0 {
		// The client looks at the tree itself after an overflow event, and no later change may be missed. So the
		// watches are rebuilt first. If the whole tree can no longer be watched, there is nothing more to report.
		w.left = nil
		if w.dirs.recursive {
			_ = w.dirs.rebuild()
		}
		w.tell.overflow()
		return
	}
	if e.mask&syscall.IN_IGNORED != 0 {
		w.dirs.forget(e.wd)
		return
	}
	dir := w.dirs.byWatch[e.wd]
	if dir == nil {
		return
	}
	arrives := e.mask&syscall.IN_MOVED_TO != 0
	if w.left != nil && !(arrives && e.cookie == w.left.cookie) {
		w.leftForGood()
	}
	if e.name == "" {
		if e.mask&(syscall.IN_DELETE_SELF|syscall.IN_MOVE_SELF) != 0 && dir.path == "" {
			w.tell.change("removed", w.dirs.show(""), "")
		}
		return
	}
	path := dir.path + "/" + e.name
	isDir := e.mask&syscall.IN_ISDIR != 0
	if e.mask&syscall.IN_MOVED_FROM != 0 {
		w.dirs.wasTold(dir, e.name)
		w.left = &leaving{e.cookie, path, e.name, isDir}
		return
	}
	if temporary, _ := isTemporary(e.name); temporary {
		return
	}
	switch {
	case arrives:
		w.arrived(dir, e.name, path, isDir)
	case e.mask&syscall.IN_CREATE != 0:
		w.appeared(dir, e.name, path, isDir)
	case e.mask&syscall.IN_DELETE != 0:
		w.dirs.wasTold(dir, e.name)
		w.tell.change("removed", w.dirs.show(path), "")
	case e.mask&(syscall.IN_MODIFY|syscall.IN_ATTRIB) != 0:
		w.tell.change("modified", w.dirs.show(path), "")
	}
}

// arrived handles a move to path, from the path in w.left or from outside of the tree.
func (w *watcher) arrived(dir *directory, name, path string, isDir bool) {
	left := w.left
	w.left = nil
	if left == nil {
		w.appeared(dir, name, path, isDir)
		return
	}
	if temporary, replaces := isTemporary(left.name); temporary {
		// The agent writes to a temporary name and renames it at the end.
		if replaces {
			w.tell.change("modified", w.dirs.show(path), "")
		} else {
			w.appeared(dir, name, path, isDir)
		}
		return
	}
	w.dirs.wasTold(dir, name)
	w.tell.change("moved", w.dirs.show(left.path), w.dirs.show(path))
	if isDir {
		w.dirs.moved(left.path, path)
	}
}

// appeared handles a new file at path. A new directory is watched from now on, and its contents are reported.
func (w *watcher) appeared(dir *directory, name, path string, isDir bool) {
	if w.dirs.wasTold(dir, name) {
		return
	}
	w.tell.change("created", w.dirs.show(path), "")
	if !isDir || !w.dirs.recursive {
		return
	}
	found := func(below string) { w.tell.change("created", w.dirs.show(below), "") }
	if err := w.dirs.add(path, found); err != nil {
		w.tell.overflow()
	}
}

func (w *watcher) leftForGood() {
	left := w.left
	w.left = nil
	if temporary, _ := isTemporary(left.name); temporary {
		return
	}
	w.tell.change("removed", w.dirs.show(left.path), "")
	if left.isDir {
		w.dirs.drop(left.path)
	}
}

// teller gathers events and sends them in few writes.
type teller struct {
	st   *mux.Stream
	as   *actor
	only string // the path of a watched file; "" for a directory
	buf  []byte
	last string // the path of the last change if that was a modification
	err  error
}

func (t *teller) change(kind, path, to string) {
	if t.only != "" && path != t.only && to != t.only {
		return
	}
	c := change{Kind: kind, Path: text(path)}
	if to != "" {
		c.To = text(to)
	}
	again := kind == "modified" && path == t.last
	t.last = ""
	if kind == "modified" {
		t.last = path
	}
	if !again {
		t.add(c)
	}
}

func (t *teller) overflow() {
	t.last = ""
	t.add(overflow{true})
}

func (t *teller) add(v any) {
	payload, err := json.Marshal(v)
	if err != nil || t.err != nil {
		return // encoding does not fail, because the values hold only strings
	}
	t.buf = frame.Append(t.buf, frame.Event, t.st.ID(), payload)
	if len(t.buf) >= flushAt {
		t.err = t.flush()
	}
}

// flush sends the gathered events. After that, another modification of the same file is reported again.
func (t *teller) flush() error {
	t.last = ""
	if t.err != nil || len(t.buf) == 0 {
		return t.err
	}
	if lost(t.st) {
		return mux.ErrLost
	}
	err := t.as.outside(func() error { return t.st.SendFrames(t.buf) })
	t.buf = t.buf[:0]
	return err
}

var errTooMany = fault.New(
	fault.QuotaExceeded, "path: the tree has more than %d directories: watch a part of it", maxWatches,
)
