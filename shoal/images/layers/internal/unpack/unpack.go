// Package unpack turns the archive of a layer into a directory that overlayfs takes as a lower one.
//
// A whiteout (`.wh.name`) becomes a character device 0/0, an opaque directory (`.wh..wh..opq`) an attribute. An archive is
// hostile: all its names are resolved below the directory (rootdir), and everything that it can ask for has a bound.
package unpack

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"shoal/layers/internal/report"
	"shoal/layers/internal/rootdir"
)

// Bounds of one layer.
type Bounds struct {
	Bytes   int64 `json:"bytes"`   // of the uncompressed archive, and of all its files as they are read (holes count)
	Entries int64 `json:"entries"` // files, directories, links
}

// Summary tells what was unpacked.
type Summary struct {
	Entries int64
	Size    int64 // bytes of all regular files
	Sparse  bool  // the archive stores files with holes in a form of its own, and cannot be made again from the files
}

const (
	whiteout       = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
	opaque         = "trusted.overlay.opaque"
)

type directory struct {
	name         string
	access, mode unix.Timespec
}

// Unpacker makes the files of one layer, entry by entry.
type Unpacker struct {
	root        *rootdir.Root
	bounds      Bounds
	progress    func(bytes, entries int64)
	summary     Summary
	directories []directory // whose times are set at the end, as every entry below changes them
	buffer      []byte
	// Follow, if it is set, is told of each part of a file that was written. The descriptor can be read, and is closed soon.
	Follow func(fd int, from, size int64) error
}

// New returns one for a directory, which is empty.
func New(root *rootdir.Root, bounds Bounds, progress func(bytes, entries int64)) *Unpacker {
	return &Unpacker{root: root, bounds: bounds, progress: progress, buffer: make([]byte, 256<<10)}
}

// Finish does what can be done only once all entries are there.
func (u *Unpacker) Finish() (Summary, error) { return u.summary, u.setDirectoryTimes() }

// Entry makes one file, directory, link or mark.
func (u *Unpacker) Entry(header *tar.Header, content io.Reader) error {
	defer func() { u.progress(u.summary.Size, u.summary.Entries) }()
	return u.entry(header, content)
}

// ReadError tells an archive that is broken from a source, or a disk, that failed.
func ReadError(err error) error {
	var failure *report.Failure
	var errno syscall.Errno
	if errors.As(err, &failure) || errors.As(err, &errno) {
		return err
	}
	return report.Invalid("the archive is broken: %v", err)
}

func (u *Unpacker) entry(header *tar.Header, content io.Reader) error {
	if u.summary.Entries++; u.summary.Entries > u.bounds.Entries {
		return report.Invalid("the archive has more than %d entries, which is the most", u.bounds.Entries)
	}
	name, err := rootdir.Clean(header.Name)
	if err != nil {
		return err
	}
	if header.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if name == "" {
		return u.rootDirectory(header)
	}
	if strings.HasPrefix(name, whiteoutMeta) && name != whiteoutOpaque { // a union filesystem's own, for its own use
		return nil
	}
	parent, base, err := u.root.Parent(name)
	if err != nil {
		return err
	}
	if strings.HasPrefix(base, whiteout) {
		return u.whiteout(parent, path.Dir(name), base)
	}
	hadWhiteout, err := u.makeWay(parent, base, header.Typeflag)
	if err != nil {
		return err
	}
	if err := u.create(parent, base, name, header, content); err != nil {
		return err
	}
	if hadWhiteout && header.Typeflag == tar.TypeDir {
		return u.setOpaque(parent, base)
	}
	return nil
}

func (u *Unpacker) rootDirectory(header *tar.Header) error {
	if header.Typeflag != tar.TypeDir {
		return report.Invalid("the archive's own root is no directory")
	}
	u.directories = append(u.directories, directory{"", accessTime(header), modifyTime(header)})
	return setAttributes(u.root.Fd(), header)
}

// whiteout hides what the layers below have: one name, or all of a directory.
func (u *Unpacker) whiteout(parent int, directoryName, base string) error {
	if base == whiteoutOpaque {
		if err := unix.Fsetxattr(parent, opaque, []byte("y"), 0); err != nil {
			return fmt.Errorf("mark %.80q opaque: %w", directoryName, err)
		}
		return nil
	}
	if strings.HasPrefix(base, whiteoutMeta) {
		return nil
	}
	hidden := strings.TrimPrefix(base, whiteout)
	if hidden == "" || hidden == "." || hidden == ".." {
		return report.Invalid("the archive has a whiteout of nothing: %.80q", base)
	}
	var there unix.Stat_t
	err := unix.Fstatat(parent, hidden, &there, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		if err := unix.Mknodat(parent, hidden, unix.S_IFCHR, 0); err != nil {
			return fmt.Errorf("hide %.80q: %w", hidden, err)
		}
		return nil
	case err != nil:
		return fmt.Errorf("hide %.80q: %w", hidden, err)
	case there.Mode&unix.S_IFMT == unix.S_IFDIR: // removed below and made anew in this layer
		return u.setOpaque(parent, hidden)
	}
	return nil
}

func (u *Unpacker) setOpaque(parent int, base string) error {
	fd, err := openDirectory(parent, base)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fsetxattr(fd, opaque, []byte("y"), 0); err != nil {
		return fmt.Errorf("mark %.80q opaque: %w", base, err)
	}
	return nil
}

// makeWay removes what an earlier entry of the name has left, but for a directory that stays one.
func (u *Unpacker) makeWay(parent int, base string, kind byte) (hadWhiteout bool, err error) {
	var there unix.Stat_t
	err = unix.Fstatat(parent, base, &there, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at %.80q: %w", base, err)
	}
	isDirectory := there.Mode&unix.S_IFMT == unix.S_IFDIR
	if isDirectory && kind == tar.TypeDir {
		return false, nil
	}
	if err := rootdir.RemoveAll(parent, base); err != nil {
		return false, err
	}
	if isDirectory || there.Mode&unix.S_IFMT == unix.S_IFLNK {
		// By way of a link, the directory that was used last may be what has gone.
		u.root.Expire()
	}
	return there.Mode&unix.S_IFMT == unix.S_IFCHR && there.Rdev == 0, nil
}

func (u *Unpacker) create(parent int, base, name string, header *tar.Header, content io.Reader) error {
	switch header.Typeflag {
	case tar.TypeReg, '\x00', tar.TypeGNUSparse: // '\x00': a regular file in archives older than POSIX
		return u.file(parent, base, header, content)
	case tar.TypeDir:
		return u.makeDirectory(parent, base, name, header)
	case tar.TypeLink:
		return u.hardLink(parent, base, header)
	case tar.TypeSymlink:
		if len(header.Linkname) == 0 || len(header.Linkname) >= 4096 {
			return report.Invalid("the archive has a link with a target of %d bytes: %.80q", len(header.Linkname), name)
		}
		if err := unix.Symlinkat(header.Linkname, parent, base); err != nil {
			return fmt.Errorf("link %.80q: %w", name, err)
		}
		return setNodeAttributes(parent, base, header)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return u.node(parent, base, header)
	default:
		return report.Invalid("the archive has an entry of an unknown kind %q: %.80q", header.Typeflag, name)
	}
}

func (u *Unpacker) makeDirectory(parent int, base, name string, header *tar.Header) error {
	if err := unix.Mkdirat(parent, base, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make %.80q: %w", name, err)
	}
	fd, err := openDirectory(parent, base)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	u.directories = append(u.directories, directory{name, accessTime(header), modifyTime(header)})
	return setAttributes(fd, header)
}

func (u *Unpacker) hardLink(parent int, base string, header *tar.Header) error {
	target, err := rootdir.Clean(header.Linkname)
	if err != nil {
		return err
	}
	directory, last := path.Split(target)
	fd, err := u.root.OpenDir(strings.TrimSuffix(directory, "/"))
	if errors.Is(err, unix.ENOENT) || (err == nil && last == "") {
		return report.Invalid("the archive links to what it does not hold: %.80q", header.Linkname)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = unix.Linkat(fd, last, parent, base, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EPERM), errors.Is(err, unix.EMLINK):
		return report.Invalid("the archive links to what it does not hold or cannot be linked to: %.80q", header.Linkname)
	case err != nil:
		return fmt.Errorf("link %.80q: %w", base, err)
	}
	return nil
}

func (u *Unpacker) node(parent int, base string, header *tar.Header) error {
	var kind uint32
	switch header.Typeflag {
	case tar.TypeChar:
		kind = unix.S_IFCHR
	case tar.TypeBlock:
		kind = unix.S_IFBLK
	default:
		kind = unix.S_IFIFO
	}
	if header.Devmajor < 0 || header.Devmajor > math.MaxUint32 || header.Devminor < 0 || header.Devminor > math.MaxUint32 {
		return report.Invalid("the archive has a device with an impossible number: %.80q", header.Name)
	}
	device := 0
	if kind != unix.S_IFIFO {
		device = int(unix.Mkdev(uint32(header.Devmajor), uint32(header.Devminor)))
	}
	if err := unix.Mknodat(parent, base, kind|uint32(header.Mode&0o7777), device); err != nil {
		return fmt.Errorf("make device %.80q: %w", header.Name, err)
	}
	if err := setNodeAttributes(parent, base, header); err != nil {
		return err
	}
	return unix.Fchmodat(parent, base, uint32(header.Mode&0o7777), 0)
}

func (u *Unpacker) setDirectoryTimes() error {
	for i := len(u.directories) - 1; i >= 0; i-- {
		each := u.directories[i]
		fd, err := u.root.OpenDir(each.name)
		if errors.Is(err, unix.ENOENT) { // a later entry has replaced it
			continue
		}
		var failure *report.Failure
		if errors.As(err, &failure) {
			continue
		}
		if err != nil {
			return err
		}
		err = unix.UtimesNanoAt(fd, "", []unix.Timespec{each.access, each.mode}, unix.AT_EMPTY_PATH)
		_ = unix.Close(fd)
		if err != nil {
			return fmt.Errorf("set the times of %.80q: %w", each.name, err)
		}
	}
	return nil
}

func openDirectory(parent int, base string) (int, error) {
	fd, err := unix.Openat(parent, base, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %.80q: %w", base, err)
	}
	return fd, nil
}

func modifyTime(header *tar.Header) unix.Timespec { return timespec(header.ModTime) }

func accessTime(header *tar.Header) unix.Timespec {
	if header.AccessTime.IsZero() {
		return timespec(header.ModTime)
	}
	return timespec(header.AccessTime)
}

// timespec bounds a time to what every filesystem can store.
func timespec(at time.Time) unix.Timespec {
	if at.IsZero() || at.Unix() < math.MinInt32 || at.Unix() > math.MaxUint32 {
		return unix.Timespec{}
	}
	return unix.NsecToTimespec(at.UnixNano())
}
