package files

import (
	"os"
	"syscall"

	"shoal/agent/internal/mux"
)

type mkdirRequest struct {
	Op      string  `json:"op"`
	Path    pathArg `json:"path"`
	Parents bool    `json:"parents"`
	Mode    *uint32 `json:"mode"`
	User    string  `json:"user"`
}

func (s *service) mkdir(st *mux.Stream, r *mkdirRequest) error {
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
	if err := mkdir(path, r.Parents, r.Mode); err != nil {
		return failed("path", "mkdir", path, err)
	}
	as.reply(st, empty{})
	return nil
}

// mkdir makes a directory. With parents it also makes missing parents, with the default mode, and leaves an existing
// directory as it is.
func mkdir(path string, parents bool, mode *uint32) error {
	dir, base := split(path)
	parent, err := openParent(dir, parents)
	if err != nil {
		return failed("path", "mkdir", path, err)
	}
	defer syscall.Close(parent)
	err = makeDirectory(parent, base, mode)
	if err == syscall.EEXIST && parents {
		if info, statErr := os.Stat(path); statErr == nil && info.IsDir() {
			return nil
		}
	}
	return failed("path", "mkdir", path, err)
}

// openParent opens a directory in which to work. With make, it makes the directory and its parents if they are missing.
func openParent(path string, make bool) (int, error) {
	fd, err := openAt(atCWD, path, oPath|syscall.O_DIRECTORY, 0)
	if err != syscall.ENOENT || !make || path == "/" {
		return fd, err
	}
	dir, base := split(path)
	above, err := openParent(dir, true)
	if err != nil {
		return -1, err
	}
	defer syscall.Close(above)
	if err := makeDirectory(above, base, nil); err != nil && err != syscall.EEXIST {
		return -1, err
	}
	return openAt(above, base, oPath|syscall.O_DIRECTORY, 0)
}

// makeDirectory makes a directory. A mode is set whatever the umask is; nil: what the umask leaves of 0o777.
func makeDirectory(dir int, name string, mode *uint32) error {
	if mode == nil {
		return again(func() error { return syscall.Mkdirat(dir, name, folderDefault) })
	}
	if err := again(func() error { return syscall.Mkdirat(dir, name, 0o700) }); err != nil {
		return err
	}
	fd, err := openAt(dir, name, oDirNoFollow, 0)
	if err == nil {
		err = setMode(fd, *mode)
		syscall.Close(fd)
	}
	if err != nil {
		unlinkAt(dir, name, atRemoveDir)
	}
	return err
}
