package files

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"shoal/agent/internal/frame"
)

func TestStat(t *testing.T) {
	c, dir := connect(t), t.TempDir()
	writeFile(t, dir+"/f", "12345", 0o640)
	os.Symlink("f", dir+"/l")
	os.Symlink("none", dir+"/broken")
	syscall.Mkfifo(dir+"/p", 0o600)
	look := func(path string, follow bool) object {
		return c.call(object{"op": "stat", "path": path, "follow": follow}).mustSucceed(t).ok
	}
	f := look(dir+"/l", true)
	if f["kind"] != "file" || f["size"] != 5.0 || f["mode"] != float64(0o640) || f["name"] != "l" || f["target"] != nil {
		t.Fatal(f)
	}
	info, _ := os.Stat(dir + "/f")
	if f["uid"] != float64(os.Geteuid()) || f["mtime_ns"] != float64(info.ModTime().UnixNano()) {
		t.Fatal(f)
	}
	if l := look(dir+"/broken", false); l["kind"] != "link" || l["target"] != "none" || l["path"] != dir+"/broken" {
		t.Fatal(l)
	}
	if p := look(dir+"/p", true); p["kind"] != "other" {
		t.Fatal(p)
	}
	if d := look(dir+"/", true); d["kind"] != "dir" || d["path"] != dir || d["name"] != filepath.Base(dir) {
		t.Fatal(d)
	}
	if d := look("///", false); d["path"] != "/" || d["name"] != "/" {
		t.Fatal(d)
	}
	if d := look("/tmp/../tmp/..", false); d["path"] != "/" || d["name"] != "/" {
		t.Fatal(d)
	}
	c.call(object{"op": "stat", "path": dir + "/broken", "follow": true}).mustFail(t, "path_not_found", "path")
}

func TestListComesSortedInBoundedEvents(t *testing.T) {
	c, dir := connect(t), t.TempDir()
	odd := "\xff\xfe\n\""
	writeFile(t, dir+"/"+odd, "", 0o644)
	for i := range 600 {
		writeFile(t, fmt.Sprintf("%s/%03d", dir, i), "", 0o644)
	}
	os.Symlink(odd, dir+"/link")
	a := c.call(object{"op": "list", "path": dir}).mustSucceed(t)
	var entries []any
	for _, event := range a.events {
		batch := event["entries"].([]any)
		if len(batch) > maxEntries || len(batch) == 0 {
			t.Fatal(len(batch))
		}
		entries = append(entries, batch...)
	}
	if len(entries) != 602 {
		t.Fatal(len(entries))
	}
	for i := range 600 {
		if e := entries[i].(object); e["name"] != fmt.Sprintf("%03d", i) || e["path"] != fmt.Sprintf("%s/%03d", dir, i) {
			t.Fatal(i, e)
		}
	}
	if e := entries[600].(object); e["name"] != "link" || unwrap(t, e["target"]) != odd {
		t.Fatal(e)
	}
	last := entries[601].(object)
	if unwrap(t, last["name"]) != odd || unwrap(t, last["path"]) != dir+"/"+odd {
		t.Fatal(last)
	}
	// A path that came as base64 is returned as base64.
	c.call(object{"op": "stat", "path": last["path"], "follow": true}).mustSucceed(t)
	if a := c.call(object{"op": "list", "path": t.TempDir()}).mustSucceed(t); len(a.events) != 0 {
		t.Fatal(a.events)
	}
	c.call(object{"op": "list", "path": dir + "/000"}).mustFail(t, "not_a_directory", "path")
	c.call(object{"op": "list", "path": dir + "/none"}).mustFail(t, "path_not_found", "path")
}

func unwrap(t *testing.T, value any) string {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(value.(object)["b64"].(string))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestListOfLongPathsFitsIntoFrames(t *testing.T) {
	c := connect(t)
	dir := t.TempDir()
	for len(dir) < 3500 { // each byte of these names takes six in JSON
		dir += "/" + strings.Repeat("\x01", 250)
	}
	for i := range 100 {
		writeFile(t, fmt.Sprintf("%s/%s%03d", dir, strings.Repeat("\x02", 250), i), "", 0o644)
	}
	count := 0
	for _, event := range c.call(object{"op": "list", "path": dir}).mustSucceed(t).events {
		count += len(event["entries"].([]any))
	}
	if count != 100 {
		t.Fatal(count)
	}
}

func TestMkdir(t *testing.T) {
	c, dir := connect(t), t.TempDir()
	path := dir + "/a/b/c"
	c.call(object{"op": "mkdir", "path": path}).mustFail(t, "path_not_found", "path")
	c.call(object{"op": "mkdir", "path": path + "//", "parents": true, "mode": 0o1777}).mustSucceed(t)
	mustMode(t, path, 0o777|os.ModeSticky)
	mustMode(t, dir+"/a/b", 0o755)
	c.call(object{"op": "mkdir", "path": path, "parents": true, "mode": 0o700}).mustSucceed(t)
	mustMode(t, path, 0o777|os.ModeSticky)
	c.call(object{"op": "mkdir", "path": path}).mustFail(t, "already_exists", "path")
	c.call(object{"op": "mkdir", "path": "/", "parents": true}).mustSucceed(t)
	writeFile(t, dir+"/f", "", 0o644)
	c.call(object{"op": "mkdir", "path": dir + "/f", "parents": true}).mustFail(t, "already_exists", "path")
	c.call(object{"op": "mkdir", "path": dir + "/f/x", "parents": true}).mustFail(t, "not_a_directory", "path")
	os.Symlink("a", dir+"/l")
	c.call(object{"op": "mkdir", "path": dir + "/l/new", "parents": true}).mustSucceed(t)
	mustNames(t, dir+"/a", "b", "new")
}

func TestRemoveNeverFollowsLinks(t *testing.T) {
	c, dir := connect(t), t.TempDir()
	writeFile(t, dir+"/kept/f", "x", 0o644)
	writeFile(t, dir+"/tree/sub/f", "x", 0o444)
	os.Symlink(dir+"/kept", dir+"/tree/link")
	os.Symlink(dir+"/kept", dir+"/link")
	c.call(object{"op": "remove", "path": dir + "/tree"}).mustFail(t, "failed_precondition", "path")
	c.call(object{"op": "remove", "path": dir + "/link/", "recursive": true}).mustFail(t, "not_a_directory", "path")
	c.call(object{"op": "remove", "path": dir + "/link", "recursive": true}).mustSucceed(t)
	c.call(object{"op": "remove", "path": dir + "/tree/", "recursive": true}).mustSucceed(t)
	mustNames(t, dir, "kept")
	mustRead(t, dir+"/kept/f", "x")
	c.call(object{"op": "remove", "path": dir + "/tree", "recursive": true}).mustFail(t, "path_not_found", "path")
	for _, path := range []string{"/", "//", dir + "/kept/.", dir + "/kept/.."} {
		c.call(object{"op": "remove", "path": path, "recursive": true}).mustFail(t, "invalid_request", "path")
	}
	c.call(object{"op": "remove", "path": dir + "/kept/f"}).mustSucceed(t)
	c.call(object{"op": "remove", "path": dir + "/kept"}).mustSucceed(t)
}

func TestRemoveOfATreeDeeperThanAnyPath(t *testing.T) {
	c, dir := connect(t), t.TempDir()
	deepTree(t, dir+"/deep", 3000)
	c.call(object{"op": "pack", "path": dir + "/deep"}).mustFail(t, "invalid_request", "path")
	c.call(object{"op": "remove", "path": dir + "/deep", "recursive": true}).mustSucceed(t)
	mustNames(t, dir)
}

func deepTree(t *testing.T, top string, depth int) {
	t.Helper()
	if err := os.Mkdir(top, 0o755); err != nil {
		t.Fatal(err)
	}
	at, err := openAt(atCWD, top, oDirectory, 0)
	for range depth {
		if err == nil {
			err = syscall.Mkdirat(at, "d", 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		below, openErr := openAt(at, "d", oDirectory, 0)
		syscall.Close(at)
		at, err = below, openErr
	}
	syscall.Close(at)
}

func TestMove(t *testing.T) {
	c, dir := connect(t), t.TempDir()
	writeFile(t, dir+"/a", "a", 0o644)
	writeFile(t, dir+"/b", "b", 0o644)
	writeFile(t, dir+"/d/f", "f", 0o644)
	c.call(object{"op": "move", "path": dir + "/a", "to": dir + "/b"}).mustFail(t, "already_exists", "to")
	mustRead(t, dir+"/b", "b")
	c.call(object{"op": "move", "path": dir + "/a", "to": dir + "/b", "overwrite": true}).mustSucceed(t)
	mustRead(t, dir+"/b", "a")
	c.call(object{"op": "move", "path": dir + "/a", "to": dir + "/c"}).mustFail(t, "path_not_found", "path")
	c.call(object{"op": "move", "path": dir + "/b", "to": dir + "/none/c"}).mustFail(t, "path_not_found", "to")
	c.call(object{"op": "move", "path": dir + "/d", "to": dir + "/d/below"}).mustFail(t, "invalid_request", "to")
	c.call(object{"op": "move", "path": dir + "/d", "to": dir + "/e"}).mustSucceed(t)
	mustRead(t, dir+"/e/f", "f")
	os.Mkdir(dir+"/x", 0o755)
	c.call(object{"op": "move", "path": dir + "/x", "to": dir + "/e", "overwrite": true}).mustFail(t, "already_exists", "to")
	os.Symlink("none", dir+"/l")
	c.call(object{"op": "move", "path": dir + "/l", "to": dir + "/m"}).mustSucceed(t)
	mustNames(t, dir, "b", "e", "m", "x")
}

func TestCancelledRequestsLeaveTheConnectionUsable(t *testing.T) {
	c, dir := connect(t), t.TempDir()
	writeFile(t, dir+"/f", strings.Repeat("x", 4<<20), 0o644)
	for _, op := range []string{"read", "pack", "watch", "unpack", "list"} {
		path := dir + "/f"
		if op != "read" && op != "pack" {
			path = dir
		}
		if op == "unpack" {
			path = os.TempDir() // it makes missing directories, perhaps after this test has cleaned up
		}
		c.send(frame.Cancel, c.open(object{"op": op, "path": path}), nil)
	}
	last := c.next + 1
	c.open(object{"op": "stat", "path": dir, "follow": true})
	for {
		f, err := c.dec.Next()
		if err != nil {
			t.Fatal(err)
		}
		if f.Stream == last {
			return
		}
	}
}

func TestCopy(t *testing.T) {
	c, dir := connect(t), t.TempDir()
	content := strings.Repeat("x", 700_000)
	writeFile(t, dir+"/tree/sub/f", content, 0o751)
	os.Symlink("/nowhere", dir+"/tree/l")
	c.call(object{"op": "copy", "path": dir + "/tree", "to": dir + "/new"}).mustSucceed(t)
	mustNames(t, dir, "new", "tree")
	mustNames(t, dir+"/new", "l", "sub")
	mustRead(t, dir+"/new/sub/f", content)
	mustMode(t, dir+"/new/sub/f", 0o751)
	mustRead(t, dir+"/tree/sub/f", content)
	if target, _ := os.Readlink(dir + "/new/l"); target != "/nowhere" {
		t.Fatal(target)
	}
	c.call(object{"op": "copy", "path": dir + "/tree/sub/f", "to": dir + "/new"}).mustFail(t, "already_exists", "to")
	c.call(object{"op": "copy", "path": dir + "/tree", "to": dir + "/tree/sub/x"}).mustFail(t, "invalid_request", "to")
	c.call(object{"op": "copy", "path": dir + "/none", "to": dir + "/x"}).mustFail(t, "path_not_found", "path")
	writeFile(t, dir+"/short", "short", 0o644)
	c.call(object{"op": "copy", "path": dir + "/short", "to": dir + "/new/sub/f", "overwrite": true}).mustSucceed(t)
	mustRead(t, dir+"/new/sub/f", "short")
	mustNames(t, dir+"/new/sub", "f")
}

func TestListPageByPage(t *testing.T) {
	c, dir := connect(t), t.TempDir()
	for i := range 1000 {
		writeFile(t, fmt.Sprintf("%s/%04d", dir, (i*7)%1000), "", 0o644)
	}
	after, pages := "", 0
	for {
		var found []any
		for _, event := range c.call(object{"op": "list", "path": dir, "after": after, "limit": 300}).mustSucceed(t).events {
			found = append(found, event["entries"].([]any)...)
		}
		if len(found) == 0 {
			break
		}
		first, last := found[0].(object)["name"].(string), found[len(found)-1].(object)["name"].(string)
		if want := fmt.Sprintf("%04d", 300*pages); first != want || len(found) != min(300, 1000-300*pages) {
			t.Fatal(first, len(found))
		}
		after, pages = last, pages+1
	}
	if pages != 4 {
		t.Fatal(pages)
	}
	c.call(object{"op": "list", "path": dir, "limit": -1}).mustFail(t, "invalid_request", "after")
}
