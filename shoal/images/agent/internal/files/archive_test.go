package files

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

func archive(t *testing.T, members ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range members {
		content := ""
		if h.Typeflag == tar.TypeReg {
			content = h.Linkname
			h.Linkname, h.Size = "", int64(len(content))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, content)
	}
	w.Close()
	return b.Bytes()
}

// file, dir and link make members. The content of a file is in Linkname.
func file(name, content string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Linkname: content}
}

func folder(name string, mode int64) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}
}

func link(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}
}

func TestPackAndUnpackGiveTheSameTree(t *testing.T) {
	c, dir := connect(t), t.TempDir()
	big := strings.Repeat("0123456789abcdef", 100_000) // more than the credit, so that headers overwrite sent bytes
	writeFile(t, dir+"/from/big", big, 0o751)
	writeFile(t, dir+"/from/closed/f", "f", 0o444)
	writeFile(t, dir+"/from/\xffname", "odd", 0o600)
	writeFile(t, dir+"/from/"+strings.Repeat("long/", 60)+"f", "far", 0o644)
	os.Mkdir(dir+"/from/empty", 0o700)
	os.Symlink("/outside/\xff", dir+"/from/link")
	syscall.Mkfifo(dir+"/from/fifo", 0o644)
	then := time.Unix(1_000_000_000, 0)
	os.Chtimes(dir+"/from/big", then, then)
	os.Chmod(dir+"/from/closed", 0o555)
	defer os.Chmod(dir+"/from/closed", 0o755)
	defer os.Chmod(dir+"/to/x/closed", 0o755)

	a := c.call(object{"op": "pack", "path": dir + "/from"}).mustSucceed(t)
	small := bytes.Replace(a.data, []byte(big), nil, 1)
	if len(a.data)-len(small) != len(big) {
		t.Fatal("the content is not in the archive as it is")
	}
	got := c.put(object{"op": "unpack", "path": dir + "/to/x"}, a.data).mustSucceed(t)
	if got.ok["files"] != 6.0 || got.ok["bytes"] != float64(len(big)+1+3+3) {
		t.Fatal(got.ok)
	}
	to := dir + "/to/x"
	mustRead(t, to+"/big", big)
	mustMode(t, to+"/big", 0o751)
	mustMode(t, to+"/closed", 0o555)
	mustMode(t, to+"/closed/f", 0o444)
	mustMode(t, to+"/empty", 0o700)
	mustMode(t, to+"/fifo", 0o644|os.ModeNamedPipe)
	mustRead(t, to+"/\xffname", "odd")
	mustRead(t, to+"/"+strings.Repeat("long/", 60)+"f", "far")
	if target, _ := os.Readlink(to + "/link"); target != "/outside/\xff" {
		t.Fatalf("%q", target)
	}
	if info, _ := os.Stat(to + "/big"); !info.ModTime().Equal(then) {
		t.Fatal(info.ModTime())
	}
}

func TestPackOfOneFile(t *testing.T) {
	c, dir := connect(t), t.TempDir()
	writeFile(t, dir+"/f", "content", 0o644)
	os.Symlink("f", dir+"/l")
	for _, name := range []string{"f", "l"} {
		r := tar.NewReader(bytes.NewReader(c.call(object{"op": "pack", "path": dir + "/" + name}).mustSucceed(t).data))
		h, err := r.Next()
		content, _ := io.ReadAll(r)
		if err != nil || h.Name != name || h.Typeflag != tar.TypeReg || string(content) != "content" {
			t.Fatal(h, err)
		}
		if _, err := r.Next(); err != io.EOF {
			t.Fatal(err)
		}
	}
	c.call(object{"op": "pack", "path": dir + "/none"}).mustFail(t, "path_not_found", "path")
}

func TestUnpackLeadsNowhereElse(t *testing.T) {
	for name, members := range map[string][]tar.Header{
		"dots":            {file("../f", "x")},
		"dots inside":     {file("a/../../f", "x")},
		"absolute":        {file("/f", "x")},
		"link up":         {link("l", ".."), file("l/f", "x")},
		"absolute link":   {link("l", "/tmp"), file("l/shoal-escaped", "x")},
		"link to dir":     {link("l", "../outside"), folder("l/d", 0o755)},
		"chain":           {link("a", "b/.."), link("b", "../outside"), file("a/f", "x")},
		"hard link":       {{Typeflag: tar.TypeLink, Name: "h", Linkname: "../outside/secret"}},
		"hard link abs":   {{Typeflag: tar.TypeLink, Name: "h", Linkname: "/etc/passwd"}},
		"through a link":  {link("l", "../outside"), {Typeflag: tar.TypeLink, Name: "h", Linkname: "l/secret"}},
		"fifo by a link":  {link("l", "../outside"), {Typeflag: tar.TypeFifo, Name: "l/p"}},
		"link by a link":  {link("l", "../outside"), link("l/x", "y")},
		"device":          {{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3}},
		"nameless":        {file("./.", "x")},
		"under a file":    {file("f", "x"), file("f/g", "x")},
		"parent link dir": {link("l", "../outside"), folder("l", 0o777), folder("l/x", 0o777)},
	} {
		t.Run(name, func(t *testing.T) {
			c, dir := connect(t), t.TempDir()
			writeFile(t, dir+"/outside/secret", "secret", 0o600)
			before := snapshot(t, dir+"/outside")
			a := c.put(object{"op": "unpack", "path": dir + "/in"}, archive(t, members...))
			if a.code != "invalid_request" && (a.code != "not_a_directory" || name != "under a file") {
				t.Fatalf("%q %s %v", a.code, a.message, a.ok)
			}
			if after := snapshot(t, dir+"/outside"); after != before {
				t.Fatalf("outside: %s, was %s", after, before)
			}
			mustNames(t, dir, "in", "outside")
			if _, err := os.Lstat("/tmp/shoal-escaped"); err == nil {
				os.Remove("/tmp/shoal-escaped")
				t.Fatal("escaped")
			}
		})
	}
}

func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	for _, at := range []string{dir, dir + "/secret"} {
		var st syscall.Stat_t
		if err := syscall.Lstat(at, &st); err != nil {
			t.Fatal(err)
		}
		b.WriteString(strings.Join([]string{time.Unix(st.Mtim.Sec, st.Mtim.Nsec).String(), os.FileMode(st.Mode).String(), time.Duration(st.Nlink).String()}, " "))
	}
	return b.String()
}

func TestUnpackReplacesAndNeverWritesThrough(t *testing.T) {
	c, dir := connect(t), t.TempDir()
	writeFile(t, dir+"/in/real/f", "old", 0o644)
	writeFile(t, dir+"/outside", "kept", 0o644)
	os.Symlink("../outside", dir+"/in/l")
	os.Symlink("real", dir+"/in/alias")
	os.Link(dir+"/in/real/f", dir+"/in/second")
	os.Chmod(dir+"/in/real", 0o711)
	c.put(object{"op": "unpack", "path": dir + "/in"}, archive(t,
		file("l", "new"), folder("real/", 0o777), file("real/f", "new"), file("alias/g", "by a link that stays inside"),
		file("./x//y/z", "z"), tar.Header{Typeflag: tar.TypeLink, Name: "hard", Linkname: "./real/f"}, folder("./", 0o777),
	)).mustSucceed(t)
	mustRead(t, dir+"/outside", "kept")
	mustRead(t, dir+"/in/l", "new")
	mustRead(t, dir+"/in/second", "old")
	mustRead(t, dir+"/in/hard", "new")
	mustRead(t, dir+"/in/real/g", "by a link that stays inside")
	mustRead(t, dir+"/in/x/y/z", "z")
	mustMode(t, dir+"/in/real", 0o711) // a directory that exists stays as it is
	mustMode(t, dir+"/in", 0o755)
	c.put(object{"op": "unpack", "path": dir + "/in"}, archive(t, file("real", "x"))).mustFail(t, "already_exists", "path")
	c.put(object{"op": "unpack", "path": dir + "/outside"}, archive(t)).mustFail(t, "already_exists", "path")
}

func TestUnpackOfWhatIsNoArchive(t *testing.T) {
	c, dir := connect(t), t.TempDir()
	whole := archive(t, file("a", "a"), file("f", strings.Repeat("x", 10_000)))
	c.put(object{"op": "unpack", "path": dir}, bytes.Repeat([]byte("garbage!"), 1000)).mustFail(t, "invalid_request", "archive")
	c.put(object{"op": "unpack", "path": dir}, whole[:5000]).mustFail(t, "invalid_request", "archive")
	mustNames(t, dir, "a") // no incomplete file is left
	c.put(object{"op": "unpack", "path": dir + "/none"}, nil).mustSucceed(t)
	// Data after the end of the archive is read and dropped.
	c.put(object{"op": "unpack", "path": dir}, append(whole, make([]byte, 700_000)...)).mustSucceed(t)
}
