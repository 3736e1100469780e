package files

import (
	"bytes"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"shoal/agent/internal/frame"
)

func TestReadGivesAllBytesOrTheRange(t *testing.T) {
	c, dir := connect(t), t.TempDir()
	content := make([]byte, 5<<20+17)
	rand.New(rand.NewSource(1)).Read(content)
	path := filepath.Join(dir, "f")
	writeFile(t, path, string(content), 0o644)
	for _, r := range []struct{ offset, length, from, to int }{
		{0, -1, 0, len(content)}, {0, 1 << 30, 0, len(content)}, {100, 5, 100, 105}, {0, 0, 0, 0},
		{len(content) - 3, 100, len(content) - 3, len(content)}, {len(content) + 9, -1, 0, 0}, {len(content), 1, 0, 0},
		{0, 2 * chunk, 0, 2 * chunk},
	} {
		a := c.call(object{"op": "read", "path": path, "offset": r.offset, "length": r.length}).mustSucceed(t)
		if !bytes.Equal(a.data, content[r.from:r.to]) || a.ok["size"] != float64(r.to-r.from) {
			t.Fatalf("%+v: %d bytes, reply %v", r, len(a.data), a.ok)
		}
	}
}

func TestReadStaysWithinTheCredit(t *testing.T) {
	c := connect(t)
	path := filepath.Join(t.TempDir(), "f")
	writeFile(t, path, strings.Repeat("x", 3<<20), 0o644)
	id := c.open(object{"op": "read", "path": path})
	got := 0
	for got < frame.InitialCredit {
		f, err := c.dec.Next()
		if err != nil || f.Kind != frame.Data {
			t.Fatal(f.Kind, err)
		}
		got += len(f.Payload)
	}
	if got != frame.InitialCredit {
		t.Fatalf("%d bytes are beyond the credit", got)
	}
	for _, n := range []uint32{1, 10, 3 << 20} { // credit may come in pieces of any size
		c.conn.Write(frame.AppendCredit(nil, id, n))
	}
	a := &answer{}
	c.receive(a, a.ended)
	if got+len(a.data) != 3<<20 {
		t.Fatal(got + len(a.data))
	}
}

func TestReadOfProcGoesToItsEnd(t *testing.T) {
	// In a namespace of its own, because there no other process mounts anything between the two reads.
	if !inNamespace(t) {
		return
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	c := connect(t)
	want, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	a := c.call(object{"op": "read", "path": "/proc/self/mountinfo", "length": -1}).mustSucceed(t)
	if !bytes.Equal(a.data, want) {
		t.Fatalf("%q", a.data)
	}
	a = c.call(object{"op": "read", "path": "/proc/self/mountinfo", "length": 7, "offset": 2}).mustSucceed(t)
	if !bytes.Equal(a.data, want[2:9]) {
		t.Fatalf("%q", a.data)
	}
}

func TestReadOfAGrowingFileEndsAtItsFirstSize(t *testing.T) {
	c := connect(t)
	path := filepath.Join(t.TempDir(), "f")
	const size = 2 << 20
	writeFile(t, path, strings.Repeat("a", size), 0o644)
	c.open(object{"op": "read", "path": path})
	// The first frame shows that the file is open. The limited credit keeps the agent from finishing.
	f, err := c.dec.Next()
	if err != nil {
		t.Fatal(err)
	}
	a := &answer{data: append([]byte(nil), f.Payload...)}
	file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(file, strings.Repeat("b", 1000))
	file.Close()
	c.conn.Write(frame.AppendCredit(nil, f.Stream, uint32(len(f.Payload))))
	c.receive(a, a.ended)
	if len(a.data) != size || bytes.IndexByte(a.data, 'b') >= 0 {
		t.Fatal(len(a.data))
	}
}

func TestReadRefusesWhatIsNoFile(t *testing.T) {
	c, dir := connect(t), t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "f"), "", 0o644)
	for path, code := range map[string]string{
		fifo: "invalid_request", dir: "is_a_directory", "/dev/zero": "invalid_request",
		dir + "/missing": "path_not_found", dir + "/f/below": "not_a_directory",
		dir + "/" + strings.Repeat("n", 300): "invalid_request",
	} {
		c.call(object{"op": "read", "path": path}).mustFail(t, code, "path")
	}
	c.put(object{"op": "write", "path": fifo}, []byte("x")).mustFail(t, "invalid_request", "path")
	c.put(object{"op": "write", "path": fifo, "append": true}, []byte("x")).mustFail(t, "invalid_request", "path")
	c.call(object{"op": "pack", "path": fifo}).mustFail(t, "invalid_request", "path")
}

func TestRequestsAreStrict(t *testing.T) {
	c := connect(t)
	for field, request := range map[string]object{
		"offset":    {"op": "read", "path": "/etc/passwd", "offset": -1},
		"length":    {"op": "read", "path": "/etc/passwd", "length": -2},
		"mode":      {"op": "mkdir", "path": "/tmp/x", "mode": 0o10000},
		"surprise":  {"op": "list", "path": "/", "surprise": 1},
		"recursive": {"op": "remove", "path": "/tmp/none", "recursive": "yes"},
		"to":        {"op": "move", "path": "/tmp/none", "to": ""},
	} {
		c.call(request).mustFail(t, "invalid_request", field)
	}
	c.call(object{"op": "read", "path": "relative"}).mustFail(t, "relative_path", "path")
	for _, path := range []any{"", "/a\x00b", nil, 7, object{"b64": "!"}, object{"b64": "YQ==", "x": 1}, object{}, []int{1}, "/" + strings.Repeat("a", 5000)} {
		c.call(object{"op": "stat", "path": path, "follow": true}).mustFail(t, "invalid_request", "path")
	}
}

func TestWriteReplacesAtOnceAndKeepsTheMode(t *testing.T) {
	c, dir := connect(t), t.TempDir()
	path := filepath.Join(dir, "deep", "er", "f")
	content := strings.Repeat("0123456789", 90_000)
	c.put(object{"op": "write", "path": path}, nil).mustFail(t, "path_not_found", "path")
	a := c.put(object{"op": "write", "path": path, "parents": true}, []byte(content)).mustSucceed(t)
	if a.ok["size"] != float64(len(content)) {
		t.Fatal(a.ok)
	}
	mustRead(t, path, content)
	mustMode(t, path, 0o644)
	mustMode(t, filepath.Dir(path), 0o755)

	os.Chmod(path, 0o750)
	old, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	c.put(object{"op": "write", "path": path, "mode": nil}, []byte("new")).mustSucceed(t)
	mustRead(t, path, "new")
	mustMode(t, path, 0o750)
	if info, _ := old.Stat(); info.Size() != int64(len(content)) {
		t.Fatal("a reader of the old file lost it")
	}
	c.put(object{"op": "write", "path": path, "mode": 0o4711}, nil).mustSucceed(t)
	mustRead(t, path, "")
	mustMode(t, path, 0o711|os.ModeSetuid)
	mustNames(t, filepath.Dir(path), "f")
}

func mustMode(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil || info.Mode()&^os.ModeDir != mode {
		t.Fatalf("%s: %v (%v), want %v", path, info.Mode(), err, mode)
	}
}

func TestWriteGoesThroughLinks(t *testing.T) {
	c, dir := connect(t), t.TempDir()
	writeFile(t, dir+"/sub/file", "old", 0o600)
	for _, pair := range [][2]string{{"rel", "sub/file"}, {"abs", dir + "/sub/file"}, {"twice", "rel"}, {"dangling", "sub/fresh"}} {
		link, target := pair[0], pair[1]
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
		c.put(object{"op": "write", "path": dir + "/" + link}, []byte(link)).mustSucceed(t)
		if got, err := os.Readlink(dir + "/" + link); err != nil || got != target {
			t.Fatal("the link is gone", err)
		}
		mustRead(t, dir+"/"+link, link)
	}
	mustRead(t, dir+"/sub/fresh", "dangling")
	os.Symlink("loop", dir+"/loop")
	c.put(object{"op": "write", "path": dir + "/loop"}, nil).mustFail(t, "invalid_request", "path")
	c.put(object{"op": "write", "path": dir + "/sub"}, nil).mustFail(t, "is_a_directory", "path")
	c.put(object{"op": "write", "path": dir + "/sub/"}, nil).mustFail(t, "is_a_directory", "path")
	c.put(object{"op": "write", "path": "/"}, nil).mustFail(t, "is_a_directory", "path")
}

func TestWriteThatIsGivenUpLeavesNothing(t *testing.T) {
	for name, giveUp := range map[string]func(c *client, id uint32){
		"cancelled": func(c *client, id uint32) { c.send(frame.Cancel, id, nil) },
		"lost":      func(c *client, _ uint32) { c.conn.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			c, dir := connect(t), t.TempDir()
			path := dir + "/f"
			writeFile(t, path, "old", 0o644)
			id := c.open(object{"op": "write", "path": path})
			c.send(frame.Data, id, []byte("half"))
			count := func() int { entries, _ := os.ReadDir(dir); return len(entries) }
			eventually(t, "no temporary came", func() bool { return count() == 2 })
			giveUp(c, id)
			eventually(t, "the temporary stays", func() bool { return count() == 1 })
			mustRead(t, path, "old")
		})
	}
}

func TestAppend(t *testing.T) {
	c, dir := connect(t), t.TempDir()
	path := dir + "/a/log"
	for i, text := range []string{"one", "two", ""} {
		a := c.put(object{"op": "write", "path": path, "append": true, "parents": true}, []byte(text)).mustSucceed(t)
		if a.ok["size"] != float64(len(text)) {
			t.Fatal(i, a.ok)
		}
	}
	mustRead(t, path, "onetwo")
	mustMode(t, path, 0o644)
	os.Chmod(path, 0o600)
	c.put(object{"op": "write", "path": path, "append": true}, []byte("!")).mustSucceed(t)
	mustMode(t, path, 0o600)
}

// BenchmarkRead and BenchmarkWrite move 10 MiB through a socket.
func BenchmarkRead(b *testing.B) { benchmark(b, "read") }

func BenchmarkWrite(b *testing.B) { benchmark(b, "write") }

func benchmark(b *testing.B, op string) {
	var t testing.T
	c := connect(&t)
	path := filepath.Join(b.TempDir(), "f")
	content := make([]byte, 10<<20)
	rand.New(rand.NewSource(1)).Read(content)
	if err := os.WriteFile(path, content, 0o644); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		id := c.open(object{"op": op, "path": path})
		window := int64(frame.InitialCredit)
		piece := frame.Append(nil, frame.Data, id, content[:256<<10])
		credit := frame.AppendCredit(nil, id, 1<<20)
		c.conn.Write(credit)
		for left, owed, done := len(content), 0, false; !done; {
			for op == "write" && left > 0 && window >= 256<<10 {
				c.conn.Write(piece)
				window -= 256 << 10
				if left -= 256 << 10; left == 0 {
					c.send(frame.End, id, nil)
				}
			}
			f, err := c.dec.Next()
			if err != nil {
				b.Fatal(err)
			}
			switch f.Kind {
			case frame.Data:
				if owed += len(f.Payload); owed >= 1<<20 {
					owed -= 1 << 20
					c.conn.Write(credit)
				}
			case frame.Credit:
				n, _ := frame.ParseCredit(f.Payload)
				window += int64(n)
			case frame.Reply:
				done = true
			}
			if f.Owned {
				frame.Recycle(f.Payload)
			}
		}
	}
}
