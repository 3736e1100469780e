package files

import (
	"errors"
	"os"
	"path"
	"syscall"

	"shoal/agent/internal/fault"
)

// tree makes files below a directory, and never outside of it: it follows a link only if the link stays below the
// directory. Missing parent directories are made.
type tree struct {
	root *os.Root
}

// put calls make, which makes a new file at name. If the name exists already, put removes it first and never writes
// through it.
func (t tree) put(name string, make func() error) error {
	err := make()
	if errors.Is(err, syscall.ENOENT) {
		if err := t.parents(name); err != nil {
			return err
		}
		err = make()
	}
	if !errors.Is(err, syscall.EEXIST) {
		return err
	}
	if info, err := t.root.Lstat(name); err == nil && info.IsDir() {
		return fault.New(fault.AlreadyExists, "a directory with this name exists: remove it first")
	}
	if err := t.root.Remove(name); err != nil && !errors.Is(err, syscall.ENOENT) {
		return err
	}
	return make()
}

func (t tree) parents(name string) error {
	_, err := t.directory(path.Dir(name), folderDefault&^umask)
	return err
}

// create makes a new file to write to. Its mode keeps other users from opening it.
func (t tree) create(name string) (file *os.File, err error) {
	err = t.put(name, func() error {
		file, err = t.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
		return err
	})
	return file, err
}

// directory makes a directory, and reports whether it did. It leaves an existing directory, or a link to one below the
// root, as it is.
func (t tree) directory(name string, mode uint32) (made bool, err error) {
	if name == "." {
		return false, nil
	}
	err = t.root.Mkdir(name, 0o700)
	if errors.Is(err, syscall.ENOENT) {
		if err := t.parents(name); err != nil {
			return false, err
		}
		err = t.root.Mkdir(name, 0o700)
	}
	if errors.Is(err, syscall.EEXIST) {
		info, err := t.root.Stat(name)
		if err == nil && !info.IsDir() {
			err = fault.New(fault.AlreadyExists, "it exists and is not a directory: remove it first")
		}
		return false, err
	}
	if err != nil {
		return false, err
	}
	return true, t.withDirectory(name, func(fd int) error { return setMode(fd, mode) })
}

// setMode changes the mode of a directory.
func (t tree) setMode(name string, mode uint32) error {
	return t.withDirectory(name, func(fd int) error {
		return again(func() error { return syscall.Fchmod(fd, mode) })
	})
}

func (t tree) withDirectory(name string, do func(fd int) error) error {
	dir, err := t.root.OpenFile(name, oDirectory, 0)
	if err != nil {
		return err
	}
	defer dir.Close()
	return do(int(dir.Fd()))
}

func (t tree) fifo(name string, mode uint32) error {
	dir, base := path.Split(name)
	return t.put(name, func() error {
		return t.withDirectory(path.Clean(dir), func(fd int) error {
			return syscall.Mknodat(fd, base, syscall.S_IFIFO|mode&0o777, 0)
		})
	})
}
