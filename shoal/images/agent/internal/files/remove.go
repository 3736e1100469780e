package files

import (
	"strings"
	"syscall"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/mux"
)

// maxDepth bounds how many directories are open at once in a tree that is nested beyond all reason.
const maxDepth = 512

var errTooDeep = fault.Invalid("path", "directories are nested more than %d deep there", maxDepth)

type removeRequest struct {
	Op        string  `json:"op"`
	Path      pathArg `json:"path"`
	Recursive bool    `json:"recursive"`
}

func remove(st *mux.Stream, r *removeRequest) error {
	path, err := r.Path.valid("path")
	if err != nil {
		return err
	}
	dir, base := split(path)
	if !plain(base) {
		return fault.Invalid("path", "%s cannot be removed: name what lies in it", path)
	}
	parent, err := openAt(atCWD, dir, oPath|syscall.O_DIRECTORY, 0)
	if err != nil {
		return failed("path", "remove", path, err)
	}
	defer syscall.Close(parent)
	if strings.HasSuffix(path, "/") {
		// The path insists on a directory; a link to one is none.
		at, err := lstatAt(parent, base)
		if err == nil && !isKind(&at, syscall.S_IFDIR) {
			err = syscall.ENOTDIR
		}
		if err != nil {
			return failed("path", "remove", path, err)
		}
	}
	err = removeTree(st, parent, base, r.Recursive)
	if err == syscall.ENOTEMPTY {
		why := "it is not empty: set recursive to remove all that it holds"
		if r.Recursive {
			why = "something is put into it while it is removed: try again when that has ended"
		}
		return &fault.Fault{Code: fault.AlreadyExists, Field: "path", Message: "path: " + strings.ToValidUTF8(path, "�") + ": " + why}
	}
	if err != nil {
		return failed("path", "remove", path, err)
	}
	st.Reply(empty{})
	return nil
}

// removeTree removes a name and, if asked, all below it, however deep. A link is removed itself. It ends where the stream, if any, is lost.
func removeTree(st *mux.Stream, dir int, name string, recursive bool) error {
	err := removeOne(dir, name)
	if err != syscall.ENOTEMPTY || !recursive {
		return err
	}
	top, err := openAt(dir, name, oDirNoFollow, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(top)
	r := &remover{st: st, top: top}
	err = r.empty(top, 0)
	for err == nil && len(r.raised) > 0 {
		last := len(r.raised) - 1
		next := r.raised[last]
		r.raised = r.raised[:last]
		err = r.remove(top, next, 0)
	}
	if err != nil {
		return err
	}
	return unlinkAt(dir, name, atRemoveDir)
}

// removeOne removes anything but a directory that holds something, which is ENOTEMPTY.
func removeOne(dir int, name string) error {
	err := unlinkAt(dir, name, 0)
	if err != syscall.EISDIR && err != syscall.EPERM {
		return err
	}
	if at, statErr := lstatAt(dir, name); statErr != nil || !isKind(&at, syscall.S_IFDIR) {
		return err
	}
	return unlinkAt(dir, name, atRemoveDir)
}

// remover removes what lies below top. Directories that lie too deep are moved up to top first, and removed from there.
type remover struct {
	st     *mux.Stream
	top    int
	raised []string
}

// empty removes all that an open directory holds. What cannot be removed does not keep the rest.
func (r *remover) empty(dir, depth int) error {
	names, err := namesIn(dir)
	if err != nil {
		return err
	}
	var first error
	for _, name := range names {
		if lost(r.st) {
			return mux.ErrLost
		}
		if err := r.remove(dir, name, depth); err != nil && err != syscall.ENOENT && first == nil {
			first = err
		}
	}
	return first
}

func (r *remover) remove(dir int, name string, depth int) error {
	err := removeOne(dir, name)
	if err != syscall.ENOTEMPTY {
		return err
	}
	if depth == maxDepth {
		raised := temporaryName(true)
		if err := renameAt(dir, name, r.top, raised, true); err != nil {
			return err
		}
		r.raised = append(r.raised, raised)
		return nil
	}
	fd, err := openAt(dir, name, oDirNoFollow, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	if err := r.empty(fd, depth+1); err != nil {
		return err
	}
	return unlinkAt(dir, name, atRemoveDir)
}
