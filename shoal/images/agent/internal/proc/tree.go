package proc

import (
	"bytes"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

// killBudget bounds the time for killing one tree: a process that hangs in the kernel may never end. It is long, because
// hundreds of processes that spin leave this one little of the sandbox's processor time until they are stopped.
const killBudget = 30 * time.Second

const longestKillPause = 50 * time.Millisecond

// row describes one process as /proc shows it.
type row struct {
	pid, parent, group, session int
	uid                         uint32
	dead                        bool
}

// tree finds the processes that belong to one: its group and session, its descendants, and orphans with its mark in
// their environment. It remembers the sessions it found, so it finds a process again that loses its parent between two
// calls of look.
type tree struct {
	leader   int
	mark     []byte
	sessions map[int]bool
	members  map[int]bool
}

func newTree(p *Process) *tree {
	return &tree{
		leader: p.pid, mark: []byte("SHOAL_PROCESS=" + p.ID + "\x00"),
		sessions: map[int]bool{p.pid: true}, members: map[int]bool{p.pid: true},
	}
}

// look returns the living members.
func (t *tree) look() []int {
	rows := processes()
	for grew := true; grew; {
		grew = false
		for _, r := range rows {
			if t.members[r.pid] || r.pid == 1 || r.pid == os.Getpid() {
				continue
			}
			if t.members[r.parent] || t.sessions[r.session] || r.group == t.leader || r.parent == os.Getpid() && t.marked(r) {
				t.members[r.pid] = true
				grew = true
			}
		}
	}
	var living []int
	met := t.members
	t.members = make(map[int]bool, len(met)) // drops unused pids: another process may soon get one of them
	for _, r := range rows {
		if !met[r.pid] {
			continue
		}
		t.members[r.pid] = true
		if r.session == r.pid {
			t.sessions[r.pid] = true
		}
		if !r.dead {
			living = append(living, r.pid)
		}
	}
	return living
}

// marked reports whether the environment that an orphan started with has the mark. The kernel shows the environment of
// another user's process only to that user. So the reading thread takes on that user's file system ids while it reads.
func (t *tree) marked(r row) bool {
	if r.uid != uint32(os.Geteuid()) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		gid := syscall.Getegid()
		if st, err := os.Stat("/proc/" + strconv.Itoa(r.pid)); err == nil {
			gid = int(st.Sys().(*syscall.Stat_t).Gid)
		}
		syscall.RawSyscall(syscall.SYS_SETFSGID, uintptr(gid), 0, 0)
		syscall.RawSyscall(syscall.SYS_SETFSUID, uintptr(r.uid), 0, 0)
		defer syscall.RawSyscall(syscall.SYS_SETFSGID, uintptr(syscall.Getegid()), 0, 0)
		defer syscall.RawSyscall(syscall.SYS_SETFSUID, uintptr(syscall.Geteuid()), 0, 0)
	}
	environ := readBounded("/proc/"+strconv.Itoa(r.pid)+"/environ", 4<<20)
	return bytes.HasPrefix(environ, t.mark) || bytes.Contains(environ, append([]byte{0}, t.mark...))
}

// killTree stops every member, so that none can fork while it looks for the others, and then kills them all. It stops
// the group first: that is one call, and mostly all there is. To look at each of many that spin takes seconds.
func (t *Table) killTree(p *Process) {
	t.reaper.kill(p, syscall.SIGSTOP)
	members := newTree(p)
	deadline := time.Now().Add(killBudget)
	stopped := map[int]bool{}
	for grew := true; grew && time.Now().Before(deadline); {
		grew = false
		for _, pid := range members.look() {
			if !stopped[pid] {
				stopped[pid], grew = true, true
				syscall.Kill(pid, syscall.SIGSTOP)
			}
		}
	}
	for pause := time.Millisecond; time.Now().Before(deadline); pause = min(2*pause, longestKillPause) {
		living := members.look()
		if len(living) == 0 {
			return
		}
		for _, pid := range living {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		t.reaper.kill(p, syscall.SIGKILL)
		time.Sleep(pause)
	}
}

// signalTree signals every process that belongs to p now.
func (t *Table) signalTree(p *Process, sig syscall.Signal) error {
	for _, pid := range newTree(p).look() {
		syscall.Kill(pid, sig)
	}
	return nil
}

func processes() []row {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	rows := make([]row, 0, len(names))
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if r, ok := parseStat(pid, readBounded("/proc/"+name+"/stat", 1024)); ok {
			var st syscall.Stat_t
			if syscall.Stat("/proc/"+name, &st) == nil {
				r.uid = st.Uid
			}
			rows = append(rows, r)
		}
	}
	return rows
}

// parseStat reads `pid (any name at all) state ppid pgrp session …`.
func parseStat(pid int, stat []byte) (row, bool) {
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return row{}, false
	}
	fields := bytes.Fields(stat[i+1:])
	if len(fields) < 4 {
		return row{}, false
	}
	number := func(b []byte) int { n, _ := strconv.Atoi(string(b)); return n }
	return row{
		pid: pid, parent: number(fields[1]), group: number(fields[2]), session: number(fields[3]),
		dead: fields[0][0] == 'Z' || fields[0][0] == 'X',
	}, true
}

func readBounded(path string, limit int) []byte {
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer syscall.Close(fd)
	buf := make([]byte, 0, 1024)
	for len(buf) < limit {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := syscall.Read(fd, buf[len(buf):cap(buf)])
		if err == syscall.EINTR {
			continue
		}
		if n <= 0 || err != nil {
			break
		}
		buf = buf[:len(buf)+n]
	}
	return buf
}
