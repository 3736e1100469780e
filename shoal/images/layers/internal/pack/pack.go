// Package pack turns the upper directory of an overlay, what one container has changed, into the entries of a layer.
//
// The directory is as hostile as the container was: it is walked by descriptor, no link is followed, and what an archive
// cannot hold is left out (sockets, names that mean a whiteout) or refused (names that are too long). The same directory gives
// the same bytes: names are in order, and only what belongs to the files is written.
package pack

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"shoal/layers/internal/report"
)

const (
	whiteout       = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	longestName    = 4095
	deepest        = 1024 // directories in one another, a descriptor each
)

// Options of one archive.
type Options struct {
	Bytes   int64    // the most of all files together
	Entries int64    // the most of them
	Exclude []string // names that are left out, with all below
}

// Summary tells what was packed. Skipped: what an archive cannot hold.
type Summary struct {
	Size    int64
	Entries int64
	Skipped int64
}

type inode struct{ device, number uint64 }

// Emit takes one entry of the archive. `content` has just as many bytes as the header says.
type Emit func(header *tar.Header, content io.Reader) error

type packer struct {
	emit    Emit
	options Options
	exclude map[string]bool
	linked  map[inode]string // the first name of every file that has several
	summary Summary
	target  []byte // of a link
}

// Upper emits what is in a directory.
func Upper(directory string, emit Emit, options Options) (Summary, error) {
	fd, err := unix.Open(directory, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return Summary{}, fmt.Errorf("open %s: %w", directory, err)
	}
	p := &packer{
		emit: emit, options: options,
		exclude: map[string]bool{}, linked: map[inode]string{}, target: make([]byte, longestName+1),
	}
	for _, name := range options.Exclude {
		p.exclude[strings.Trim(name, "/")] = true
	}
	opened := os.NewFile(uintptr(fd), directory)
	defer opened.Close()
	err = p.directory(opened, "", 0)
	return p.summary, err
}

// directory writes a directory's own entry and all that is in it.
func (p *packer) directory(opened *os.File, name string, depth int) error {
	if depth > deepest {
		return report.Invalid("the files are nested deeper than %d directories: %.80q", deepest, name)
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(opened.Fd()), &stat); err != nil {
		return fmt.Errorf("look at %.80q: %w", name, err)
	}
	header := header(name+"/", tar.TypeDir, &stat)
	if name == "" {
		header.Name = "./"
	}
	opaque, err := addAttributes(header, int(opened.Fd()))
	if err != nil {
		return err
	}
	if err := p.add(header, nothing); err != nil {
		return err
	}
	if opaque {
		if err := p.add(&tar.Header{Name: join(name, whiteoutOpaque), Typeflag: tar.TypeReg}, nothing); err != nil {
			return err
		}
	}
	children, err := opened.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("read %.80q: %w", name, err)
	}
	sort.Strings(children)
	for _, child := range children {
		if err := p.child(opened, join(name, child), child, depth); err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) child(parent *os.File, name, base string, depth int) error {
	if p.exclude[name] {
		return nil
	}
	if len(name) > longestName {
		return report.Invalid("the files have a name of %d bytes; the most is %d", len(name), longestName)
	}
	var stat unix.Stat_t
	err := unix.Fstatat(int(parent.Fd()), base, &stat, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) { // removed meanwhile
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at %.80q: %w", name, err)
	}
	kind := stat.Mode & unix.S_IFMT
	if kind == unix.S_IFCHR && stat.Rdev == 0 {
		directory, last := name[:len(name)-len(base)], base
		return p.add(&tar.Header{Name: directory + whiteout + last, Typeflag: tar.TypeReg}, nothing)
	}
	if strings.HasPrefix(base, whiteout) || kind == unix.S_IFSOCK {
		p.summary.Skipped++
		return nil
	}
	switch kind {
	case unix.S_IFDIR:
		opened, err := open(parent, base, unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		defer opened.Close()
		return p.directory(opened, name, depth+1)
	case unix.S_IFREG:
		return p.file(parent, base, name, &stat)
	default:
		return p.node(parent, base, name, kind, &stat)
	}
}

func (p *packer) node(parent *os.File, base, name string, kind uint32, stat *unix.Stat_t) error {
	flags := map[uint32]byte{
		unix.S_IFLNK: tar.TypeSymlink, unix.S_IFIFO: tar.TypeFifo, unix.S_IFCHR: tar.TypeChar, unix.S_IFBLK: tar.TypeBlock,
	}
	header := header(name, flags[kind], stat)
	switch kind {
	case unix.S_IFLNK:
		n, err := unix.Readlinkat(int(parent.Fd()), base, p.target)
		if err != nil {
			return fmt.Errorf("read link %.80q: %w", name, err)
		}
		header.Linkname = string(p.target[:n])
		header.Mode = 0o777
	case unix.S_IFCHR, unix.S_IFBLK:
		header.Devmajor, header.Devminor = int64(unix.Major(stat.Rdev)), int64(unix.Minor(stat.Rdev))
	}
	return p.add(header, nothing)
}

func (p *packer) file(parent *os.File, base, name string, stat *unix.Stat_t) error {
	key := inode{uint64(stat.Dev), stat.Ino}
	if first, known := p.linked[key]; known {
		header := header(name, tar.TypeLink, stat)
		header.Linkname = first
		return p.add(header, nothing)
	}
	opened, err := open(parent, base, 0)
	if err != nil {
		return err
	}
	defer opened.Close()
	header := header(name, tar.TypeReg, stat)
	if p.summary.Size += stat.Size; p.summary.Size > p.options.Bytes {
		return &report.Failure{
			Code:    report.QuotaExceeded,
			Message: fmt.Sprintf("the files are larger than %d bytes, which is the most", p.options.Bytes),
		}
	}
	header.Size = stat.Size
	if _, err := addAttributes(header, int(opened.Fd())); err != nil {
		return err
	}
	if stat.Nlink > 1 {
		p.linked[key] = name
	}
	// One that shrinks meanwhile is filled up with zeros, and one that grows is cut off.
	return p.add(header, io.LimitReader(io.MultiReader(opened, zeroReader{}), stat.Size))
}

func header(name string, kind byte, stat *unix.Stat_t) *tar.Header {
	return &tar.Header{
		Format: tar.FormatPAX, Typeflag: kind, Name: name, Mode: int64(stat.Mode & 0o7777),
		Uid: int(stat.Uid), Gid: int(stat.Gid), ModTime: time.Unix(stat.Mtim.Sec, stat.Mtim.Nsec),
	}
}

func (p *packer) add(header *tar.Header, content io.Reader) error {
	if p.summary.Entries++; p.summary.Entries > p.options.Entries {
		return &report.Failure{
			Code:    report.QuotaExceeded,
			Message: fmt.Sprintf("there are more than %d files, which is the most", p.options.Entries),
		}
	}
	if header.ModTime.IsZero() {
		header.ModTime = time.Unix(0, 0)
	}
	if err := p.emit(header, content); err != nil {
		return fmt.Errorf("pack %.80q: %w", header.Name, err)
	}
	return nil
}

var nothing = strings.NewReader("")

// open opens a child without following a link, or waiting for a device.
func open(parent *os.File, base string, flags int) (*os.File, error) {
	flags |= unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := unix.Openat(int(parent.Fd()), base, flags, 0)
	if err != nil {
		return nil, fmt.Errorf("open %.80q: %w", base, err)
	}
	return os.NewFile(uintptr(fd), base), nil
}

func join(directory, name string) string {
	if directory == "" {
		return name
	}
	return directory + "/" + name
}

type zeroReader struct{}

func (zeroReader) Read(buffer []byte) (int, error) {
	clear(buffer)
	return len(buffer), nil
}
