package files

import (
	"bytes"
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	// keptFor is how long the names of a directory are kept for the next page.
	keptFor = time.Minute
	// leastKept is how many names make it worth it.
	leastKept = 10_000
	// mostKept bounds the bytes of the names that are kept.
	mostKept = 32 << 20
	// settled is how long ago a directory was changed that is kept: two changes may have one time, and JuiceFS leaves out
	// a new time within a tenth of a second.
	settled = time.Second
)

// pages keeps the names of the directory that was listed page by page last. To read a million of them takes a minute on
// some file systems, and each page would read them all. A directory that has changed since is read again.
type pages struct {
	mu    sync.Mutex
	state stamp
	names nameList
	timer *time.Timer
}

// stamp tells a directory from others, and from itself once it has changed.
type stamp struct {
	dev, ino     uint64
	mtime, ctime syscall.Timespec
}

// nameList holds names one behind the other, each with a NUL at its end.
type nameList struct {
	text   []byte
	starts []uint32
}

func (l *nameList) add(name string) {
	l.starts = append(l.starts, uint32(len(l.text)))
	l.text = append(append(l.text, name...), 0)
}

func (l *nameList) size() int { return len(l.text) + 4*len(l.starts) }

func (l *nameList) at(start uint32) []byte {
	rest := l.text[start:]
	return rest[:bytes.IndexByte(rest, 0)]
}

func (l *nameList) sort() {
	slices.SortFunc(l.starts, func(a, b uint32) int { return bytes.Compare(l.at(a), l.at(b)) })
}

// after returns the first names that come after one, limit of them. The list is sorted.
func (l *nameList) after(name string, limit int) []string {
	begin, found := slices.BinarySearchFunc(l.starts, name, func(start uint32, name string) int {
		return bytes.Compare(l.at(start), []byte(name))
	})
	if found {
		begin++
	}
	var names []string
	for _, start := range l.starts[begin:min(begin+limit, len(l.starts))] {
		names = append(names, string(l.at(start)))
	}
	return names
}

// page returns the first names of an open directory, in their order, that come after one: limit of them, which is not 0.
func (p *pages) page(dir int, after string, limit int) ([]string, error) {
	before, err := stampOf(dir)
	if err != nil {
		return nil, err
	}
	if names, ok := p.known(before, after, limit); ok {
		return names, nil
	}
	var all nameList
	var names []string
	err = eachNames(dir, func(more []string) {
		for _, name := range more {
			if all.size() <= mostKept {
				all.add(name)
			}
			if name > after {
				names = append(names, name)
			}
		}
		if len(names) > 2*limit {
			names = firstOf(names, limit)
		}
	})
	if err != nil {
		return nil, err
	}
	now, err := stampOf(dir)
	old := time.Since(time.Unix(now.ctime.Sec, now.ctime.Nsec)) > settled
	if err == nil && now == before && old && len(all.starts) >= leastKept && all.size() <= mostKept {
		all.sort()
		p.keep(now, all)
	}
	return firstOf(names, limit), nil
}

func (p *pages) known(state stamp, after string, limit int) ([]string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.names.starts == nil || p.state != state {
		return nil, false
	}
	p.timer.Reset(keptFor)
	return p.names.after(after, limit), true
}

func (p *pages) keep(state stamp, names nameList) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state, p.names = state, names
	if p.timer == nil {
		p.timer = time.AfterFunc(keptFor, p.forget)
	} else {
		p.timer.Reset(keptFor)
	}
}

func (p *pages) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.names = nameList{}
}

func stampOf(dir int) (stamp, error) {
	var st syscall.Stat_t
	if err := again(func() error { return syscall.Fstat(dir, &st) }); err != nil {
		return stamp{}, err
	}
	return stamp{uint64(st.Dev), st.Ino, st.Mtim, st.Ctim}, nil
}
