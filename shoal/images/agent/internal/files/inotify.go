package files

import (
	"encoding/binary"
	"os"
	"strings"
	"syscall"
)

const (
	watchMask = syscall.IN_CREATE | syscall.IN_DELETE | syscall.IN_MODIFY | syscall.IN_ATTRIB |
		syscall.IN_MOVED_FROM | syscall.IN_MOVED_TO | syscall.IN_DELETE_SELF | syscall.IN_MOVE_SELF |
		syscall.IN_ONLYDIR | syscall.IN_DONT_FOLLOW | syscall.IN_EXCL_UNLINK
	// maxTold bounds how many names are remembered that were reported before the kernel's own event.
	maxTold = 1 << 16
)

// event is one inotify event: something happened to name in the directory that wd watches.
type event struct {
	wd           int32
	mask, cookie uint32
	name         string
}

// eachEvent calls take with every event in the bytes read.
func eachEvent(b []byte, take func(event)) {
	for len(b) >= syscall.SizeofInotifyEvent {
		e := event{
			wd:     int32(binary.NativeEndian.Uint32(b)),
			mask:   binary.NativeEndian.Uint32(b[4:]),
			cookie: binary.NativeEndian.Uint32(b[8:]),
		}
		end := syscall.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
		if end > len(b) {
			return
		}
		e.name = strings.TrimRight(string(b[syscall.SizeofInotifyEvent:end]), "\x00")
		b = b[end:]
		take(e)
	}
}

// directories holds the watched directories. Their paths are relative to the root: "" for the root itself, "/a/b" below
// it.
type directories struct {
	fd          int
	recursive   bool
	most        int    // maximum number of watches
	real, shown string // the root's path without links, and as the client named it
	byWatch     map[int32]*directory
	told        int
}

type directory struct {
	path string
	// told holds names that were found when the watch on the directory began, and reported as created. The kernel may
	// send an event about them, too.
	told map[string]struct{}
}

func (d *directories) show(path string) string {
	if shown := d.shown + path; shown != "" {
		return shown
	}
	return "/"
}

// rebuild watches the whole tree anew, at the beginning and after events were dropped.
func (d *directories) rebuild() error {
	before := d.byWatch
	d.byWatch, d.told = make(map[int32]*directory), 0
	err := d.add("", nil)
	for wd := range before {
		if d.byWatch[wd] == nil {
			d.unwatch(wd)
		}
	}
	return err
}

// add watches a directory and, in a recursive watch, those below it. If found is set, add calls it with each path in
// them. A missing directory is no error, unless it is the root.
func (d *directories) add(path string, found func(path string)) error {
	real := d.real + path
	if real == "" {
		real = "/"
	}
	wd, err := syscall.InotifyAddWatch(d.fd, real, watchMask)
	if err != nil {
		if path != "" && (err == syscall.ENOENT || err == syscall.ENOTDIR || err == syscall.ELOOP) {
			return nil
		}
		return err
	}
	watch := int32(wd)
	if d.byWatch[watch] == nil && len(d.byWatch) >= d.most {
		d.unwatch(watch)
		return errTooMany
	}
	here := &directory{path: path}
	d.byWatch[watch] = here
	if !d.recursive {
		return nil
	}
	entries, err := os.ReadDir(real)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	for _, entry := range entries {
		name := entry.Name()
		if temporary, _ := isTemporary(name); temporary {
			continue
		}
		if found != nil {
			d.remember(here, name)
			found(path + "/" + name)
		}
		if entry.IsDir() {
			if err := d.add(path+"/"+name, found); err != nil {
				return err
			}
		}
	}
	return nil
}

// remember records a reported name, so that the kernel's event about it can be skipped. Names beyond the bound may be
// reported twice.
func (d *directories) remember(dir *directory, name string) {
	if d.told == maxTold {
		return
	}
	if dir.told == nil {
		dir.told = make(map[string]struct{})
	}
	dir.told[name] = struct{}{}
	d.told++
}

// wasTold reports whether a name was reported before the kernel's event, and forgets that.
func (d *directories) wasTold(dir *directory, name string) bool {
	_, told := dir.told[name]
	if told {
		delete(dir.told, name)
		d.told--
	}
	return told
}

// moved changes the paths of the directories at and below a path that was moved.
func (d *directories) moved(from, to string) {
	for _, dir := range d.byWatch {
		if below, inside := strings.CutPrefix(dir.path, from); inside && (below == "" || below[0] == '/') {
			dir.path = to + below
		}
	}
}

// drop stops watching a directory that has left the tree, and those below it.
func (d *directories) drop(path string) {
	for wd, dir := range d.byWatch {
		if below, inside := strings.CutPrefix(dir.path, path); inside && (below == "" || below[0] == '/') {
			d.forget(wd)
			d.unwatch(wd)
		}
	}
}

func (d *directories) forget(wd int32) {
	if dir := d.byWatch[wd]; dir != nil {
		d.told -= len(dir.told)
		delete(d.byWatch, wd)
	}
}

func (d *directories) unwatch(wd int32) {
	// This fails if the kernel has already removed the watch, which is just as good.
	_, _ = syscall.InotifyRmWatch(d.fd, uint32(wd))
}
