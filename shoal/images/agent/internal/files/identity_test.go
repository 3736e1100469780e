package files

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// sharedDir makes a directory that every user may enter.
func sharedDir(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("run the tests as root: only root can act as other users")
	}
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func mustOwn(t *testing.T, path string, uid, gid int) {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil || int(st.Uid) != uid || int(st.Gid) != gid {
		t.Fatalf("%s belongs to %d:%d (%v), want %d:%d", path, st.Uid, st.Gid, err, uid, gid)
	}
}

func TestRequestsActAsTheirUser(t *testing.T) {
	dir := sharedDir(t)
	c := connect(t)
	writeFile(t, dir+"/closed/f", "secret", 0o600)
	writeFile(t, dir+"/open/f", "secret", 0o600)
	writeFile(t, dir+"/open/public", "public", 0o644)
	os.Chmod(dir+"/closed", 0o700)
	for _, request := range []object{
		{"op": "read", "path": dir + "/open/f"},
		{"op": "read", "path": dir + "/closed/f"},
		{"op": "list", "path": dir + "/closed"},
		{"op": "stat", "path": dir + "/closed/f"},
		{"op": "mkdir", "path": dir + "/open/d"},
		{"op": "mkdir", "path": dir + "/open/d/e", "parents": true},
		{"op": "remove", "path": dir + "/open/public"},
		{"op": "remove", "path": dir + "/closed", "recursive": true},
		{"op": "move", "path": dir + "/open/public", "to": "/tmp/none"},
		{"op": "pack", "path": dir + "/open"},
		{"op": "pack", "path": dir + "/closed"},
		{"op": "watch", "path": dir + "/closed"},
		{"op": "write", "path": dir + "/open/new"},
		{"op": "write", "path": dir + "/open/public"},
		{"op": "write", "path": dir + "/open/public", "append": true},
		{"op": "unpack", "path": dir + "/open/tree"},
	} {
		field := "path"
		if request["op"] == "move" {
			field = "to"
		}
		request["user"] = "1000"
		a := c.put(request, nil)
		if a.code != "permission_denied" || a.field != field {
			t.Errorf("%v: %q of %q: %s", request, a.code, a.field, a.message)
		}
	}
	mustNames(t, dir+"/open", "f", "public")
	c.call(object{"op": "read", "path": dir + "/open/f", "user": "0"}).mustSucceed(t)

	// A group of the user's lets it read, as it would a process of that user.
	os.Chown(dir+"/open/f", 0, 10_000)
	os.Chmod(dir+"/open/f", 0o640)
	c.call(object{"op": "read", "path": dir + "/open/f", "user": "1000"}).mustSucceed(t)
	c.call(object{"op": "read", "path": dir + "/open/f", "user": "1001"}).mustFail(t, "permission_denied", "path")
}

func TestWhatAUserMakesBelongsToIt(t *testing.T) {
	dir := sharedDir(t)
	c := connect(t)
	os.Chmod(dir, 0o1777)
	c.put(object{"op": "write", "path": dir + "/a/b/f", "parents": true, "user": "1000"}, []byte("x")).mustSucceed(t)
	c.put(object{"op": "write", "path": dir + "/a/log", "append": true, "user": "1000"}, []byte("x")).mustSucceed(t)
	c.call(object{"op": "mkdir", "path": dir + "/a/d", "mode": 0o2750, "user": "1000"}).mustSucceed(t)
	members := archive(t, folder("sub", 0o500), file("sub/f", "x"), link("sub/l", "f"), file("g", strings.Repeat("x", 3<<20)))
	c.put(object{"op": "unpack", "path": dir + "/t", "user": "1000"}, members).mustSucceed(t)
	for _, path := range []string{"a", "a/b", "a/b/f", "a/log", "a/d", "t", "t/sub", "t/sub/f", "t/sub/l", "t/g"} {
		mustOwn(t, dir+"/"+path, 1000, 1000)
	}
	mustMode(t, dir+"/t/sub", 0o500)
	c.call(object{"op": "pack", "path": dir + "/t", "user": "1000"}).mustSucceed(t)
	c.call(object{"op": "move", "path": dir + "/t", "to": dir + "/a/t", "user": "1000"}).mustSucceed(t)
	c.call(object{"op": "remove", "path": dir + "/a/b", "recursive": true, "user": "1000"}).mustSucceed(t)
}

func TestAWrittenFileKeepsItsOwner(t *testing.T) {
	dir := sharedDir(t)
	c := connect(t)
	os.Mkdir(dir+"/sticky", 0o755)
	for _, path := range []string{"theirs", "closed/writable", "sticky/writable"} {
		writeFile(t, dir+"/"+path, "much longer than what comes", 0o666)
		os.Chown(dir+"/"+path, 2000, 50)
	}
	os.Chmod(dir+"/sticky", 0o1777)
	c.put(object{"op": "write", "path": dir + "/theirs"}, []byte("new")).mustSucceed(t)
	mustOwn(t, dir+"/theirs", 2000, 50)
	for _, path := range []string{dir + "/closed/writable", dir + "/sticky/writable"} {
		c.put(object{"op": "write", "path": path, "user": "1000"}, []byte("new")).mustSucceed(t)
		mustRead(t, path, "new")
		mustOwn(t, path, 2000, 50)
		mustMode(t, path, 0o666)
		mustNames(t, filepath.Dir(path), "writable")
	}
}

func TestUsersAtTheSameTimeDoNotMix(t *testing.T) {
	dir := sharedDir(t)
	os.Chmod(dir, 0o1777)
	var all sync.WaitGroup
	for n := range 12 {
		c := connect(t)
		all.Go(func() {
			for i := range 40 {
				// Half of them are the agent's own user, which must never be left without its rights.
				user, uid := "", 0
				if n%2 == 1 {
					user, uid = fmt.Sprint(1000+n), 1000+n
				}
				path := fmt.Sprintf("%s/%d-%d", dir, n, i)
				a := c.put(object{"op": "write", "path": path, "user": user}, []byte(strings.Repeat("x", 400_000)))
				var st syscall.Stat_t
				if err := syscall.Stat(path, &st); a.ok == nil || err != nil || int(st.Uid) != uid || int(st.Gid) != uid {
					t.Errorf("%s: %s, %v, %d:%d", path, a.message, err, st.Uid, st.Gid)
				}
			}
		})
	}
	all.Wait()
	tasks, _ := filepath.Glob("/proc/self/task/*/status")
	want := credentials(t, "/proc/self/status")
	for _, task := range tasks {
		if got := credentials(t, task); got != want {
			t.Errorf("%s keeps %s, want %s", task, got, want)
		}
	}
}

func credentials(t *testing.T, status string) string {
	t.Helper()
	content, err := os.ReadFile(status)
	if os.IsNotExist(err) {
		return credentials(t, "/proc/self/status") // the thread has ended
	}
	var found []string
	for line := range strings.Lines(string(content)) {
		if strings.HasPrefix(line, "Uid:") || strings.HasPrefix(line, "Gid:") || strings.HasPrefix(line, "Groups:") || strings.HasPrefix(line, "CapEff:") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return strings.Join(found, " ")
}

func TestTheAgentsOwnMemoryAndEnvironmentAreClosed(t *testing.T) {
	c := connect(t)
	for _, path := range []string{"self/environ", "self/mem", "thread-self/environ", fmt.Sprint(os.Getpid(), "/auxv")} {
		c.call(object{"op": "read", "path": "/proc/" + path}).mustFail(t, "permission_denied", "path")
		c.call(object{"op": "pack", "path": "/proc/" + path}).mustFail(t, "permission_denied", "path")
		if a := c.put(object{"op": "write", "path": "/proc/" + path, "append": true}, []byte("x")); a.code != "permission_denied" {
			t.Fatalf("%s: %q %s", path, a.code, a.message)
		}
	}
	c.call(object{"op": "read", "path": "/proc/self/status"}).mustSucceed(t)
	c.call(object{"op": "read", "path": fmt.Sprintf("/proc/%d/environ", os.Getppid())}).mustSucceed(t)
}
