package files

import (
	"strings"
	"syscall"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/mux"
)

// maxDepth bounds how many directories are open at once in a deeply nested tree.
const maxDepth = 512

var errTooDeep = fault.Invalid("path", "directories are nested more than %d deep there", maxDepth)

type removeRequest struct {
	Op        string  `json:"op"`
	Path      pathArg `json:"path"`
	Recursive bool    `json:"recursive"`
	User      string  `json:"user"`
}

func (s *service) remove(st *mux.Stream, r *removeRequest) error {
	path, err := r.Path.valid("path")
	if err != nil {
		return err
	}
	dir, base := split(path)
	if !plain(base) {
		return fault.Invalid("path", "%s cannot be removed: name a path in it", path)
	}
	as, err := s.enter(r.User)
	if err != nil {
		return err
	}
	defer as.leave()
	parent, err := openAt(atCWD, dir, oPath|syscall.O_DIRECTORY, 0)
	if err != nil {
		return failed("path", "remove", path, err)
	}
	defer syscall.Close(parent)
	if strings.HasSuffix(path, "/") {
		// The slash asks for a directory. A link to one does not count.
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
		why := "it is not empty: set recursive to remove its contents, too"
		if r.Recursive {
			why = "files were added to it while it was removed: try again when no process writes to it"
		}
		return &fault.Fault{
			Code: fault.FailedPrecondition, Field: "path", Message: "path: " + strings.ToValidUTF8(path, "�") + ": " + why,
		}
	}
	if err != nil {
		return failed("path", "remove", path, err)
	}
	as.reply(st, empty{})
	return nil
}

// removeTree removes a name and, if recursive, everything below it, however deep. It removes a link and not its target.
// It stops if the stream, if there is one, is lost.
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

// removeOne removes a file or an empty directory. For a directory that is not empty it returns ENOTEMPTY.
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

// remover removes everything below top. It first moves directories that are nested too deep up to top, and removes them
// from there.
type remover struct {
	st     *mux.Stream
	top    int
	raised []string
}

// empty removes the contents of an open directory. If one entry cannot be removed, it goes on with the others and
// returns the first error.
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
