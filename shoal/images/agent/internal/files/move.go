package files

import (
	"path/filepath"
	"strings"
	"syscall"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/mux"
)

// moveRequest asks for a move or a copy.
type moveRequest struct {
	Op        string  `json:"op"`
	Path      pathArg `json:"path"`
	To        pathArg `json:"to"`
	Overwrite bool    `json:"overwrite"`
	User      string  `json:"user"`
}

func (s *service) move(st *mux.Stream, r *moveRequest) error {
	return s.place(st, r, "move", func(from, to string) error {
		err := renameAt(atCWD, from, atCWD, to, r.Overwrite)
		if err == syscall.EXDEV {
			err = moveAcross(st, from, to, r.Overwrite)
		}
		return err
	})
}

// copy copies a file or a tree. A link is copied as it is, not its target.
func (s *service) copy(st *mux.Stream, r *moveRequest) error {
	return s.place(st, r, "copy", func(from, to string) error { return copyTo(st, from, to, r.Overwrite) })
}

// place checks a request for something that is to be at another path, does it as the user, and replies.
func (s *service) place(st *mux.Stream, r *moveRequest, what string, do func(from, to string) error) error {
	from, err := r.Path.valid("path")
	if err != nil {
		return err
	}
	to, err := r.To.valid("to")
	if err != nil {
		return err
	}
	as, err := s.enter(r.User)
	if err != nil {
		return err
	}
	defer as.leave()
	// The kernel does not say which of the two paths an error is about, so check this one first.
	if _, err := lstatAt(atCWD, from); err != nil {
		return failed("path", what, from, err)
	}
	err = do(from, to)
	switch err {
	case nil:
		as.reply(st, empty{})
		return nil
	case syscall.EEXIST, syscall.ENOTEMPTY:
		why := "it exists already: set overwrite to replace a file"
		if r.Overwrite {
			why = "it is a directory that is not empty: remove it first"
		}
		return &fault.Fault{
			Code: fault.AlreadyExists, Field: "to", Message: "to: " + strings.ToValidUTF8(to, "�") + ": " + why,
		}
	}
	return failed("to", what, to, err)
}

// moveAcross moves between file systems: it copies, and only then removes the source. A directory in a lower layer of
// the image also counts as another file system.
func moveAcross(st *mux.Stream, from, to string, overwrite bool) error {
	if err := copyTo(st, from, to, overwrite); err != nil {
		return err
	}
	fromDir, fromName := split(from)
	source, err := openAt(atCWD, fromDir, oPath|syscall.O_DIRECTORY, 0)
	if err == nil {
		defer syscall.Close(source)
		err = removeTree(nil, source, fromName, true)
	}
	if err != nil {
		return failed("path", "copied, but could not remove", from, err)
	}
	return nil
}

// copyTo copies a file or tree to a temporary name beside the target, and renames the copy. Extended attributes are not
// copied, and hard links become separate files.
func copyTo(st *mux.Stream, from, to string, overwrite bool) error {
	fromDir, fromName := split(from)
	toDir, toName := split(to)
	if !plain(fromName) || !plain(toName) {
		return fault.Invalid("path", "neither %s nor %s may end in a dot", from, to)
	}
	if err := checkNotInside(from, toDir); err != nil {
		return err
	}
	source, err := openAt(atCWD, fromDir, oPath|syscall.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(source)
	target, err := openAt(atCWD, toDir, oPath|syscall.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(target)
	// The rename would fail, too, but only after the whole copy.
	if _, err := lstatAt(target, toName); err == nil && !overwrite {
		return syscall.EEXIST
	}
	temporary := temporaryName(false)
	c := copier{st: st}
	if err = c.copy(source, fromName, target, temporary, 0); err == nil {
		err = renameAt(target, temporary, target, toName, overwrite)
	}
	if err != nil {
		removeTree(nil, target, temporary, true)
	}
	return err
}

// checkNotInside returns an error for a copy of a directory into itself, which would never end.
func checkNotInside(from, toDir string) error {
	source, err := filepath.EvalSymlinks(from)
	if err != nil {
		return nil // a broken link contains nothing
	}
	target, err := filepath.EvalSymlinks(toDir)
	if err != nil {
		return err
	}
	if target == source || strings.HasPrefix(target, join(source, "")) {
		return fault.Invalid("to", "it lies inside path, which cannot go into itself")
	}
	return nil
}
