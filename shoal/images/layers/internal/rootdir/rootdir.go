// Package rootdir works below one directory by descriptor: no name leads out of it, whatever links lie in it.
//
// Every name is resolved by openat2 with RESOLVE_BENEATH: a `..` or a link that would leave the directory, and an absolute
// link, end in an error. The last part of a name is never followed.
package rootdir

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"shoal/layers/internal/report"
)

const (
	longestName = 4096 // as the kernel has it, PATH_MAX
	longestPart = 255
	deepest     = 1024 // parts of a name; removal recurses, and nobody needs more
)

// Root is a directory that nothing leaves.
type Root struct {
	fd int
	// The directory that was used last: most entries of an archive follow others of the same directory.
	cached   string
	cachedFd int
}

// Open opens the directory at a path that the caller trusts.
func Open(directory string) (*Root, error) {
	fd, err := unix.Open(directory, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", directory, err)
	}
	return &Root{fd: fd, cachedFd: -1}, nil
}

// Fd is the directory's descriptor.
func (r *Root) Fd() int { return r.fd }

// Close closes the directory.
func (r *Root) Close() {
	r.Forget()
	_ = unix.Close(r.fd)
}

// Clean checks a name out of an archive and brings it into its shortest form; "." is the directory itself.
func Clean(name string) (string, error) {
	if len(name) > longestName {
		return "", report.Invalid("the archive has a name of %d bytes; the most is %d", len(name), longestName)
	}
	if strings.ContainsRune(name, 0) {
		return "", report.Invalid("the archive has a name with a zero byte in it: %.80q", name)
	}
	if strings.HasPrefix(name, "/") && strings.Trim(name, "/") != "" {
		return "", report.Invalid("the archive has an absolute name: %.80q", name)
	}
	parts := strings.Split(name, "/")
	if len(parts) > deepest {
		return "", report.Invalid("the archive has a name of %d parts; the most is %d", len(parts), deepest)
	}
	for _, part := range parts {
		if part == ".." {
			return "", report.Invalid("the archive has a name that leads outside: %.80q", name)
		}
		if len(part) > longestPart {
			return "", report.Invalid("the archive has a file name of %d bytes; the most is %d", len(part), longestPart)
		}
	}
	return strings.TrimPrefix(path.Clean("/"+name), "/"), nil
}

// Parent returns a descriptor of the directory that holds name, and the name's last part. Missing directories are made,
// as root's with mode 0755. The descriptor is the Root's: do not close it, nor keep it over the next call.
func (r *Root) Parent(name string) (int, string, error) {
	directory, base := path.Split(name)
	directory = strings.TrimSuffix(directory, "/")
	if directory == "" {
		return r.fd, base, nil
	}
	if r.cachedFd >= 0 && r.cached == directory {
		return r.cachedFd, base, nil
	}
	fd, err := r.OpenDir(directory)
	if errors.Is(err, unix.ENOENT) {
		if err := r.makeDirs(directory); err != nil {
			return -1, "", err
		}
		fd, err = r.OpenDir(directory)
	}
	if err != nil {
		return -1, "", err
	}
	r.Forget()
	r.cached, r.cachedFd = directory, fd
	return fd, base, nil
}

// Expire has the next call look again for the directory that was used last. To be called when a directory or a link goes;
// what Parent returned last stays open until the next call.
func (r *Root) Expire() { r.cached = "" }

// Forget closes the directory that was used last.
func (r *Root) Forget() {
	if r.cachedFd >= 0 {
		_ = unix.Close(r.cachedFd)
	}
	r.cached, r.cachedFd = "", -1
}

// OpenDir opens a directory; the caller closes it. Links on the way are followed as long as they stay inside.
func (r *Root) OpenDir(name string) (int, error) {
	return r.open(name, unix.O_DIRECTORY|unix.O_RDONLY)
}

// OpenFile opens a regular file for reading.
func (r *Root) OpenFile(name string) (*os.File, error) {
	fd, err := r.open(name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (r *Root) open(name string, flags uint64) (int, error) {
	if name == "" {
		name = "."
	}
	how := unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(r.fd, name, &how)
		switch {
		case err == nil:
			return fd, nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN): // a rename elsewhere; the kernel asks to retry
			continue
		case errors.Is(err, unix.EXDEV):
			return -1, report.Invalid("the archive leads outside by a link: %.80q", name)
		case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR):
			return -1, report.Invalid("the archive has a file or a loop where a directory is needed: %.80q", name)
		default:
			return -1, fmt.Errorf("open %.80q: %w", name, err)
		}
	}
}

func (r *Root) makeDirs(directory string) error {
	parts := strings.Split(directory, "/")
	for i := range parts {
		prefix := strings.Join(parts[:i+1], "/")
		fd, err := r.OpenDir(prefix)
		if err == nil {
			_ = unix.Close(fd)
			continue
		}
		if !errors.Is(err, unix.ENOENT) {
			return err
		}
		above, err := r.OpenDir(strings.Join(parts[:i], "/"))
		if err != nil {
			return err
		}
		err = unix.Mkdirat(above, parts[i], 0o755)
		_ = unix.Close(above)
		if errors.Is(err, unix.EEXIST) { // a link that leads nowhere
			return report.Invalid("the archive has a name below a link to nothing: %.80q", directory)
		}
		if err != nil {
			return fmt.Errorf("make %.80q: %w", prefix, err)
		}
	}
	return nil
}

// RemoveAll removes a name of an open directory with all below it.
func RemoveAll(directory int, name string) error {
	err := unix.Unlinkat(directory, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("remove %.80q: %w", name, err)
	}
	fd, err := unix.Openat(directory, name, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("remove %.80q: %w", name, err)
	}
	opened := os.NewFile(uintptr(fd), name)
	defer opened.Close()
	children, err := opened.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("remove %.80q: %w", name, err)
	}
	for _, child := range children {
		if err := RemoveAll(fd, child); err != nil {
			return err
		}
	}
	if err := unix.Unlinkat(directory, name, unix.AT_REMOVEDIR); err != nil {
		return fmt.Errorf("remove %.80q: %w", name, err)
	}
	return nil
}
