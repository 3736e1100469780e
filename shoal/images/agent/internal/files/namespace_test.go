package files

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// inNamespace runs the calling test again in a process of its own that may mount file systems. It returns true in that
// process, and false in the one that waits for it.
func inNamespace(t *testing.T) bool {
	t.Helper()
	const mark = "SHOAL_TEST_NAMESPACE"
	if os.Getenv(mark) == t.Name() {
		return true
	}
	command := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	command.Env = append(os.Environ(), mark+"="+t.Name())
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		command.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		command.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		command.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	if output, err := command.CombinedOutput(); err != nil || !strings.Contains(string(output), "--- PASS: "+t.Name()) {
		t.Fatalf("in a namespace: %v\n%s", err, output)
	}
	return false
}

func mount(t *testing.T, source, target, kind string, flags uintptr, data string) {
	t.Helper()
	if err := os.MkdirAll(target, 0o755); err != nil && kind != "" {
		t.Fatal(err)
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount(source, target, kind, flags, data); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(target, syscall.MNT_DETACH) })
}

func TestAFullDiskIsQuotaExceededAndLeavesNothing(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	c, dir := connect(t), t.TempDir()+"/small"
	mount(t, "none", dir, "tmpfs", 0, "size=256k")
	content := []byte(strings.Repeat("x", 600_000))
	writeFile(t, dir+"/f", "old", 0o644)
	c.put(object{"op": "write", "path": dir + "/f"}, content).mustFail(t, "quota_exceeded", "path")
	mustRead(t, dir+"/f", "old")
	mustNames(t, dir, "f")
	c.put(object{"op": "unpack", "path": dir}, archive(t, file("big", string(content)))).mustFail(t, "quota_exceeded", "path")
	mustNames(t, dir, "f")
	writeFile(t, dir+"/../big", string(content), 0o644)
	c.call(object{"op": "move", "path": dir[:len(dir)-6] + "/big", "to": dir + "/big"}).mustFail(t, "quota_exceeded", "to")
	mustNames(t, dir, "f")
	mustRead(t, dir+"/../big", string(content))
	c.put(object{"op": "write", "path": dir + "/f", "append": true}, content).mustFail(t, "quota_exceeded", "path")
}

func TestMoveAcrossFileSystems(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	c, dir := connect(t), t.TempDir()
	mount(t, "none", dir+"/other", "tmpfs", 0, "")
	writeFile(t, dir+"/tree/sub/f", strings.Repeat("x", 700_000), 0o751|os.ModeSetuid)
	writeFile(t, dir+"/tree/g", "g", 0o600)
	os.Symlink("/nowhere", dir+"/tree/l")
	syscall.Mkfifo(dir+"/tree/p", 0o600)
	os.Chmod(dir+"/tree/sub", 0o511)
	before, _ := os.Stat(dir + "/tree/sub/f")
	c.call(object{"op": "move", "path": dir + "/tree", "to": dir + "/other/new"}).mustSucceed(t)
	mustNames(t, dir, "other")
	mustNames(t, dir+"/other", "new")
	mustNames(t, dir+"/other/new", "g", "l", "p", "sub")
	mustRead(t, dir+"/other/new/sub/f", strings.Repeat("x", 700_000))
	mustMode(t, dir+"/other/new/sub/f", 0o751|os.ModeSetuid)
	mustMode(t, dir+"/other/new/sub", 0o511)
	mustMode(t, dir+"/other/new/p", 0o600|os.ModeNamedPipe)
	if after, _ := os.Stat(dir + "/other/new/sub/f"); !after.ModTime().Equal(before.ModTime()) {
		t.Fatal(after.ModTime())
	}
	if target, _ := os.Readlink(dir + "/other/new/l"); target != "/nowhere" {
		t.Fatal(target)
	}
	writeFile(t, dir+"/f", "f", 0o644)
	writeFile(t, dir+"/other/f", "old", 0o644)
	c.call(object{"op": "move", "path": dir + "/f", "to": dir + "/other/f"}).mustFail(t, "already_exists", "to")
	c.call(object{"op": "move", "path": dir + "/f", "to": dir + "/other/f", "overwrite": true}).mustSucceed(t)
	mustRead(t, dir+"/other/f", "f")
	writeFile(t, dir+"/top/f", "f", 0o644)
	mount(t, "none", dir+"/top/below", "tmpfs", 0, "")
	c.call(object{"op": "move", "path": dir + "/top", "to": dir + "/top/below/x"}).mustFail(t, "invalid_request", "to")
	mustNames(t, dir+"/top/below")
}

func TestWriteToAMountedFileFillsIt(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	c, dir := connect(t), t.TempDir()
	writeFile(t, dir+"/host", "much longer than what comes", 0o640)
	writeFile(t, dir+"/etc/hosts", "", 0o644)
	mount(t, dir+"/host", dir+"/etc/hosts", "", syscall.MS_BIND, "")
	c.put(object{"op": "write", "path": dir + "/etc/hosts"}, []byte("filled")).mustSucceed(t)
	mustRead(t, dir+"/host", "filled")
	mustMode(t, dir+"/host", 0o640)
	mustNames(t, dir+"/etc", "hosts")
	c.call(object{"op": "remove", "path": dir + "/etc/hosts"}).mustFail(t, "failed_precondition", "path")
}
