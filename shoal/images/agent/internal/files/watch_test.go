package files

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"shoal/agent/internal/frame"
)

// watched is a watch that has begun.
type watched struct {
	t  *testing.T
	c  *client
	a  answer
	id uint32
}

func startWatch(t *testing.T, path string, recursive bool) *watched {
	t.Helper()
	w := &watched{t: t, c: connect(t)}
	w.id = w.c.open(object{"op": "watch", "path": path, "recursive": recursive})
	w.c.receive(&w.a, func() bool { return len(w.a.events) == 1 || w.a.ended() })
	if w.a.ended() || w.a.events[0]["watching"] != true {
		t.Fatal(w.a)
	}
	w.a.events = nil
	return w
}

func describe(event object) string {
	if event["overflow"] == true {
		return "overflow"
	}
	s := fmt.Sprint(event["kind"], " ", event["path"])
	if to := event["to"]; to != nil {
		s += fmt.Sprint(" ", to)
	}
	return s
}

// expect takes events until the wanted ones have come in this order. It skips modifications that are not wanted,
// because there may be any number of them.
func (w *watched) expect(want ...string) {
	w.t.Helper()
	for _, one := range want {
		for {
			w.c.receive(&w.a, func() bool { return len(w.a.events) > 0 })
			got := describe(w.a.events[0])
			w.a.events = w.a.events[1:]
			if got == one {
				break
			}
			if !strings.HasPrefix(got, "modified ") {
				w.t.Fatalf("got %q, want %q", got, one)
			}
		}
	}
}

func TestWatchOfADirectory(t *testing.T) {
	dir := t.TempDir()
	w := startWatch(t, dir+"/", false)
	os.WriteFile(dir+"/f", []byte("x"), 0o644)
	w.expect("created "+dir+"/f", "modified "+dir+"/f")
	os.Rename(dir+"/f", dir+"/g")
	w.expect("moved " + dir + "/f " + dir + "/g")
	os.Chmod(dir+"/g", 0o600)
	w.expect("modified " + dir + "/g")
	os.Mkdir(dir+"/d", 0o755)
	writeFile(t, dir+"/d/unseen", "", 0o644)
	os.Rename(dir+"/g", dir+"/d/g")
	w.expect("created "+dir+"/d", "removed "+dir+"/g")
	os.Rename(dir+"/d/g", dir+"/back")
	os.Remove(dir + "/back")
	w.expect("created "+dir+"/back", "removed "+dir+"/back")
}

func TestWatchShowsWhatTheAgentWritesAsOneChange(t *testing.T) {
	dir := t.TempDir()
	w := startWatch(t, dir, true)
	c := connect(t)
	c.put(object{"op": "write", "path": dir + "/f"}, []byte("1")).mustSucceed(t)
	c.put(object{"op": "write", "path": dir + "/f"}, []byte("2")).mustSucceed(t)
	id := c.open(object{"op": "write", "path": dir + "/f"})
	c.send(frame.Data, id, []byte("never"))
	eventually(t, "no temporary", func() bool { entries, _ := os.ReadDir(dir); return len(entries) == 2 })
	c.send(frame.Cancel, id, nil)
	eventually(t, "a temporary stays", func() bool { entries, _ := os.ReadDir(dir); return len(entries) == 1 })
	os.Remove(dir + "/f")
	for _, want := range []string{"created", "modified", "removed"} {
		w.c.receive(&w.a, func() bool { return len(w.a.events) > 0 })
		if got := describe(w.a.events[0]); got != want+" "+dir+"/f" {
			t.Fatalf("got %q, want %s", got, want)
		}
		w.a.events = w.a.events[1:]
	}
}

func TestWatchOfATreeFollowsItsDirectories(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir+"/old/deep/f", "", 0o644)
	outside := t.TempDir()
	writeFile(t, outside+"/in/sub/f", "", 0o644)
	w := startWatch(t, dir, true)
	os.Remove(dir + "/old/deep/f")
	w.expect("removed " + dir + "/old/deep/f")
	// The files are made too fast for a watch to be there in time. Each is still reported, and only once.
	if err := os.MkdirAll(dir+"/a/b/c", 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, dir+"/a/b/c/f", "", 0o644)
	w.expect("created "+dir+"/a", "created "+dir+"/a/b", "created "+dir+"/a/b/c", "created "+dir+"/a/b/c/f")
	os.Rename(dir+"/a/b", dir+"/old/b")
	w.expect("moved " + dir + "/a/b " + dir + "/old/b")
	os.Remove(dir + "/old/b/c/f")
	w.expect("removed " + dir + "/old/b/c/f")
	// A directory that leaves the tree is no longer watched. One that enters it is.
	os.Rename(dir+"/old", outside+"/old")
	w.expect("removed " + dir + "/old")
	writeFile(t, outside+"/old/unseen", "", 0o644)
	os.Rename(outside+"/in", dir+"/in")
	w.expect("created "+dir+"/in", "created "+dir+"/in/sub", "created "+dir+"/in/sub/f")
	writeFile(t, dir+"/in/sub/g", "", 0o644)
	w.expect("created " + dir + "/in/sub/g")
	os.RemoveAll(dir)
	var removed []string
	for !slices.Contains(removed, "removed "+dir) {
		w.c.receive(&w.a, func() bool { return len(w.a.events) > 0 })
		removed = append(removed, describe(w.a.events[0]))
		w.a.events = w.a.events[1:]
	}
	if !slices.Contains(removed, "removed "+dir+"/in/sub/g") {
		t.Fatal(removed)
	}
}

func TestWatchOfAFileOutlivesItsReplacement(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir+"/f", "1", 0o644)
	os.Symlink("f", dir+"/l")
	for _, path := range []string{"/f", "/l"} {
		w := startWatch(t, dir+path, true)
		writeFile(t, dir+"/other", "", 0o644)
		connect(t).put(object{"op": "write", "path": dir + "/f"}, []byte("2")).mustSucceed(t)
		w.expect("modified " + dir + "/f")
		os.Rename(dir+"/other", dir+"/f")
		w.expect("moved " + dir + "/other " + dir + "/f")
		os.Remove(dir + "/f")
		w.expect("removed " + dir + "/f")
		writeFile(t, dir+"/f", "3", 0o644)
		w.expect("created " + dir + "/f")
	}
	connect(t).call(object{"op": "watch", "path": dir + "/none"}).mustFail(t, "path_not_found", "path")
}

func TestWatchEndsByCancelAndLetsGo(t *testing.T) {
	dir := t.TempDir()
	w := startWatch(t, dir, true)
	count := func() (n int) {
		fds, _ := os.ReadDir("/proc/self/fd")
		for _, fd := range fds {
			if target, _ := os.Readlink("/proc/self/fd/" + fd.Name()); strings.Contains(target, "inotify") {
				n++
			}
		}
		return n
	}
	before := count()
	w.c.send(frame.Cancel, w.id, nil)
	// A watch of an earlier test may end at the same time.
	eventually(t, "the watch stays", func() bool { return count() < before })
}

func TestDroppedEventsAreToldAndTheTreeIsWatchedAnew(t *testing.T) {
	raw, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	if err != nil {
		t.Fatal(err)
	}
	var queue int
	fmt.Sscan(string(raw), &queue)
	dir := t.TempDir()
	w := startWatch(t, dir, true)
	// The client does not read, so the socket fills, and then the kernel's queue.
	for range queue/2 + 10_000 {
		if err := os.Symlink("x", dir+"/f"); err != nil {
			t.Fatal(err)
		}
		os.Remove(dir + "/f")
	}
	if err := os.Mkdir(dir+"/missed", 0o755); err != nil {
		t.Fatal(err)
	}
	for overflow := false; !overflow; {
		w.c.receive(&w.a, func() bool { return len(w.a.events) > 0 })
		overflow = describe(w.a.events[0]) == "overflow"
		w.a.events = w.a.events[1:]
	}
	writeFile(t, dir+"/missed/f", "", 0o644)
	w.expect("created " + dir + "/missed/f")
}

func TestWatchesAreBounded(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a", "b/c", "d"} {
		if err := os.MkdirAll(dir+"/"+name, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	for most, want := range map[int]error{5: nil, 4: errTooMany} {
		d := directories{fd: fd, real: dir, shown: dir, recursive: true, most: most}
		if err := d.rebuild(); err != want || len(d.byWatch) != most {
			t.Fatalf("%d watches of at most %d: %v", len(d.byWatch), most, err)
		}
	}
}
