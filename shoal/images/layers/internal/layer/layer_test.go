package layer

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"shoal/layers/internal/pack"
	"shoal/layers/internal/report"
	"shoal/layers/internal/stream"
	"shoal/layers/internal/unpack"
)

var bounds = unpack.Bounds{Bytes: 1 << 30, Entries: 10_000}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("run the tests as root: devices and overlayfs's attributes are root's to make")
	}
}

// entry is one of an archive. kind 0: a regular file.
type entry struct {
	name    string
	kind    byte
	content string
	link    string
	mode    int64
	size    int64 // instead of the content's
	change  func(*tar.Header)
}

func archive(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var out bytes.Buffer
	writer := tar.NewWriter(&out)
	for _, each := range entries {
		header := &tar.Header{
			Name: each.name, Typeflag: each.kind, Linkname: each.link, Mode: each.mode, Size: int64(len(each.content)),
			ModTime: time.Unix(1_600_000_000, 0),
		}
		if header.Typeflag == 0 {
			header.Typeflag = tar.TypeReg
		}
		if header.Mode == 0 {
			header.Mode = 0o755
		}
		if each.change != nil {
			each.change(header)
		}
		if err := writer.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if _, err := writer.Write([]byte(each.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func unpackInto(t *testing.T, directory string, data []byte, within unpack.Bounds) (Result, error) {
	t.Helper()
	return Unpack(bytes.NewReader(data), directory, "", within, func(int64, int64) {})
}

func unpacked(t *testing.T, entries ...entry) (string, []byte) {
	t.Helper()
	directory := t.TempDir()
	data := archive(t, entries...)
	if _, err := unpackInto(t, directory, data, bounds); err != nil {
		t.Fatal(err)
	}
	return directory, data
}

func stat(t *testing.T, directory, name string) unix.Stat_t {
	t.Helper()
	var found unix.Stat_t
	if err := unix.Lstat(filepath.Join(directory, FilesName, name), &found); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return found
}

func isOpaque(directory, name string) bool {
	value := make([]byte, 8)
	n, err := unix.Lgetxattr(filepath.Join(directory, FilesName, name), "trusted.overlay.opaque", value)
	return err == nil && string(value[:n]) == "y"
}

func TestHostileArchivesAreRefusedAndTouchNothingOutside(t *testing.T) {
	needRoot(t)
	long := strings.Repeat("d/", 2100)
	hostile := map[string][]entry{
		"absolute name":             {{name: "/etc/passwd", content: "x"}},
		"name that climbs":          {{name: "a/../../outside/owned", content: "x"}},
		"name that is dots":         {{name: "..", kind: tar.TypeDir}},
		"through a climbing link":   {{name: "l", kind: tar.TypeSymlink, link: "../../outside"}, {name: "l/owned", content: "x"}},
		"through an absolute link":  {{name: "l", kind: tar.TypeSymlink, link: "/tmp"}, {name: "l/owned", content: "x"}},
		"through two links":         {{name: "a", kind: tar.TypeSymlink, link: "b"}, {name: "b", kind: tar.TypeSymlink, link: "../.."}, {name: "a/outside/owned", content: "x"}},
		"through a loop":            {{name: "a", kind: tar.TypeSymlink, link: "a"}, {name: "a/b", content: "x"}},
		"through a dangling link":   {{name: "a", kind: tar.TypeSymlink, link: "nowhere"}, {name: "a/b", content: "x"}},
		"through a file":            {{name: "a", content: "x"}, {name: "a/b", content: "x"}},
		"hard link that climbs":     {{name: "h", kind: tar.TypeLink, link: "../outside/secret"}},
		"hard link, absolute":       {{name: "h", kind: tar.TypeLink, link: "/etc/passwd"}},
		"hard link through a link":  {{name: "l", kind: tar.TypeSymlink, link: "../../outside"}, {name: "h", kind: tar.TypeLink, link: "l/secret"}},
		"hard link to nothing":      {{name: "h", kind: tar.TypeLink, link: "missing"}},
		"hard link to a directory":  {{name: "d", kind: tar.TypeDir}, {name: "h", kind: tar.TypeLink, link: "d"}},
		"whiteout of the parent":    {{name: "a/.wh...", content: ""}},
		"whiteout of itself":        {{name: "a/.wh..", content: ""}},
		"whiteout of nothing":       {{name: ".wh.", content: ""}},
		"whiteout through a link":   {{name: "l", kind: tar.TypeSymlink, link: "../../outside"}, {name: "l/.wh.secret"}},
		"opaque through a link":     {{name: "l", kind: tar.TypeSymlink, link: "../../outside"}, {name: "l/.wh..wh..opq"}},
		"name beyond the bound":     {{name: long + "x", content: "x"}},
		"part beyond the bound":     {{name: strings.Repeat("n", 256), content: "x"}},
		"root that is a file":       {{name: "./", content: "x", change: func(h *tar.Header) { h.Name = "." }}},
		"owner beyond the kernel's": {{name: "a", change: func(h *tar.Header) { h.Uid = 1 << 33 }}},
		"owner below zero":          {{name: "a", change: func(h *tar.Header) { h.Gid = -1 }}},
		"unknown kind":              {{name: "a", kind: 'Z'}},
	}
	for name, entries := range hostile {
		t.Run(name, func(t *testing.T) {
			above := t.TempDir()
			outside := filepath.Join(above, "outside")
			directory := filepath.Join(above, "layer")
			for _, each := range []string{outside, directory} {
				if err := os.Mkdir(each, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := unpackInto(t, directory, archive(t, entries...), bounds)
			var failure *report.Failure
			if !errors.As(err, &failure) || failure.Code != report.InvalidRequest || failure.Field != "image" {
				t.Errorf("it was not refused: %v", err)
			}
			found, err := os.ReadDir(outside)
			if err != nil || len(found) != 1 {
				t.Errorf("outside there is %v (%v)", found, err)
			}
			if _, err := os.Lstat("/tmp/owned"); err == nil {
				t.Error("it wrote to /tmp")
			}
			var secret unix.Stat_t
			if err := unix.Lstat(filepath.Join(outside, "secret"), &secret); err != nil || secret.Nlink != 1 {
				t.Errorf("the secret has %d links (%v)", secret.Nlink, err)
			}
		})
	}
}

func TestBoundsAreKept(t *testing.T) {
	needRoot(t)
	bomb := archive(t, entry{name: "bomb", content: strings.Repeat("\x00", 1<<20)})
	many := archive(t, entry{name: "a"}, entry{name: "b"}, entry{name: "c"})
	for name, refused := range map[string]error{
		"bytes":     second(unpackInto(t, t.TempDir(), bomb, unpack.Bounds{Bytes: 1 << 19, Entries: 10})),
		"entries":   second(unpackInto(t, t.TempDir(), many, unpack.Bounds{Bytes: 1 << 20, Entries: 2})),
		"padding":   second(unpackInto(t, t.TempDir(), append(many, make([]byte, 1<<20)...), unpack.Bounds{Bytes: 1 << 10, Entries: 10})),
		"truncated": second(unpackInto(t, t.TempDir(), bomb[:1<<19], bounds)),
		"garbage":   second(unpackInto(t, t.TempDir(), bytes.Repeat([]byte("garbage "), 1000), bounds)),
		"digest": second(Unpack(bytes.NewReader(many), t.TempDir(), "sha256:"+strings.Repeat("0", 64), bounds,
			func(int64, int64) {})),
	} {
		var failure *report.Failure
		if !errors.As(refused, &failure) || failure.Code != report.InvalidRequest {
			t.Errorf("%s: %v", name, refused)
		}
	}
}

func second(_ Result, err error) error { return err }

func TestFilesAreAsTheArchiveHasThem(t *testing.T) {
	needRoot(t)
	directory, data := unpacked(t,
		entry{name: "./", kind: tar.TypeDir, mode: 0o711},
		entry{name: "./d/", kind: tar.TypeDir, mode: 0o1777},
		entry{name: "./d/suid", content: "program", mode: 0o4755, change: func(h *tar.Header) {
			h.Uid, h.Gid = 1000, 1001
			h.PAXRecords = map[string]string{
				"SCHILY.xattr.security.capability":      "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
				"SCHILY.xattr.user.note":                "kept",
				"SCHILY.xattr.trusted.overlay.redirect": "/elsewhere",
			}
		}},
		entry{name: "./d/same", kind: tar.TypeLink, link: "./d/suid"},
		entry{name: "./d/link", kind: tar.TypeSymlink, link: "/etc/shadow", change: func(h *tar.Header) { h.Uid = 7 }},
		entry{name: "./pipe", kind: tar.TypeFifo, mode: 0o622},
		entry{name: "./null", kind: tar.TypeChar, mode: 0o666, change: func(h *tar.Header) { h.Devmajor, h.Devminor = 1, 3 }},
		entry{name: "implied/parent/file", content: "x"},
		entry{name: "inner", kind: tar.TypeSymlink, link: "d"},
		entry{name: "inner/through", content: "x"},
		entry{name: "bytes-\xff\xfe", content: "x"},
		entry{name: "holes", content: "start" + strings.Repeat("\x00", 1<<20)},
	)
	suid, same := stat(t, directory, "d/suid"), stat(t, directory, "d/same")
	if suid.Mode != unix.S_IFREG|0o4755 || suid.Uid != 1000 || suid.Gid != 1001 || suid.Ino != same.Ino {
		t.Errorf("d/suid: %o %d:%d, its link %v", suid.Mode, suid.Uid, suid.Gid, suid.Ino == same.Ino)
	}
	if found := stat(t, directory, ""); found.Mode&0o7777 != 0o711 {
		t.Errorf("the root's mode is %o", found.Mode)
	}
	if found := stat(t, directory, "d"); found.Mode&0o7777 != 0o1777 || found.Mtim.Sec != 1_600_000_000 {
		t.Errorf("d: %o at %d", found.Mode, found.Mtim.Sec)
	}
	if found := stat(t, directory, "d/link"); found.Mode&unix.S_IFMT != unix.S_IFLNK || found.Uid != 7 {
		t.Errorf("d/link: %o of %d", found.Mode, found.Uid)
	}
	if found := stat(t, directory, "null"); found.Mode != unix.S_IFCHR|0o666 || found.Rdev != unix.Mkdev(1, 3) {
		t.Errorf("null: %o %d", found.Mode, found.Rdev)
	}
	if found := stat(t, directory, "pipe"); found.Mode != unix.S_IFIFO|0o622 {
		t.Errorf("pipe: %o", found.Mode)
	}
	if found := stat(t, directory, "holes"); found.Size != 5+1<<20 || found.Blocks*512 > 1<<19 {
		t.Errorf("holes: %d bytes in %d blocks", found.Size, found.Blocks)
	}
	for _, name := range []string{"implied/parent/file", "d/through", "bytes-\xff\xfe"} {
		stat(t, directory, name)
	}
	names := make([]byte, 1024)
	n, _ := unix.Llistxattr(filepath.Join(directory, FilesName, "d/suid"), names)
	if found := string(names[:n]); strings.Contains(found, "redirect") || !strings.Contains(found, "user.note") ||
		!strings.Contains(found, "security.capability") {
		t.Errorf("attributes %q", found)
	}
	checkMadeAgain(t, directory, data)
}

// checkMadeAgain compares the archive that the layer gives with the one that it was made of.
func checkMadeAgain(t *testing.T, directory string, data []byte) {
	t.Helper()
	var again bytes.Buffer
	if err := Pack(directory, digestOf(data), &again); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again.Bytes(), data) {
		t.Error("the archive that was made again is another")
	}
}

func TestTheLastOfTwoEntriesCounts(t *testing.T) {
	needRoot(t)
	directory := t.TempDir()
	result, err := unpackInto(t, directory, archive(t,
		entry{name: "link", kind: tar.TypeSymlink, link: "d"},
		entry{name: "d/file", content: "first"},
		entry{name: "link/other", content: "x"},
		entry{name: "d", content: "a file now"},
		entry{name: "d", kind: tar.TypeDir},
		entry{name: "link/other", content: "second"},
	), bounds)
	if err != nil || result.Exact {
		t.Fatalf("%+v, %v", result, err)
	}
	if found := stat(t, directory, "d/other"); found.Size != int64(len("second")) {
		t.Errorf("d/other has %d bytes", found.Size)
	}
	if _, err := os.Lstat(filepath.Join(directory, FilesName, "d/file")); err == nil {
		t.Error("what was below a replaced directory is still there")
	}
}

func TestWhiteoutsInEveryOrder(t *testing.T) {
	needRoot(t)
	directory, data := unpacked(t,
		entry{name: "gone/.wh.file"},
		entry{name: "d/", kind: tar.TypeDir},
		entry{name: "d/.wh..wh..opq"},
		entry{name: "d/file", content: "x"},
		entry{name: ".wh.first"}, // and then made anew as a directory: what lay below is hidden
		entry{name: "first/", kind: tar.TypeDir},
		entry{name: "last/", kind: tar.TypeDir},
		entry{name: ".wh.last"},
		entry{name: ".wh.plain"},
		entry{name: "plain", content: "x"},
	)
	if found := stat(t, directory, "gone/file"); found.Mode&unix.S_IFMT != unix.S_IFCHR || found.Rdev != 0 {
		t.Errorf("gone/file: %o", found.Mode)
	}
	for _, name := range []string{"d", "first", "last"} {
		if !isOpaque(directory, name) {
			t.Errorf("%s is not opaque", name)
		}
	}
	if found := stat(t, directory, "plain"); found.Mode&unix.S_IFMT != unix.S_IFREG {
		t.Errorf("plain: %o", found.Mode)
	}
	checkMadeAgain(t, directory, data)
}

func TestWhatIsAUnionFilesystemsOwnIsLeftOut(t *testing.T) {
	needRoot(t)
	directory := t.TempDir()
	result, err := unpackInto(t, directory, archive(t,
		entry{name: ".wh..wh.plnk/1.2", content: "x"}, entry{name: "d/.wh.gone", content: "x"}, entry{name: "d/.wh..wh.orph"},
	), bounds)
	if err != nil || result.Exact {
		t.Fatalf("%+v, %v", result, err)
	}
	if found, err := os.ReadDir(filepath.Join(directory, FilesName)); err != nil || len(found) != 1 {
		t.Errorf("%v, %v", found, err)
	}
}

func TestAnUpperDirectoryBecomesALayerThatBecomesTheSameDirectory(t *testing.T) {
	needRoot(t)
	directory, _ := unpacked(t,
		entry{name: "d/", kind: tar.TypeDir, mode: 0o750},
		entry{name: "d/.wh..wh..opq"},
		entry{name: "d/.wh.gone"},
		entry{name: "d/file", content: "content", mode: 0o4711, change: func(h *tar.Header) {
			h.ModTime = time.Unix(1_600_000_000, 123_456_789)
			h.Format = tar.FormatPAX
			h.PAXRecords = map[string]string{"SCHILY.xattr.user.note": "kept"}
		}},
		entry{name: "d/same", kind: tar.TypeLink, link: "d/file"},
		entry{name: "link", kind: tar.TypeSymlink, link: "d"},
		entry{name: "excluded/deep", content: "x"},
	)
	upper := filepath.Join(directory, FilesName)
	if err := unix.Mknod(filepath.Join(upper, "socket"), unix.S_IFSOCK|0o600, 0); err != nil {
		t.Fatal(err)
	}
	options := pack.Options{Bytes: 1 << 20, Entries: 100, Exclude: []string{"/excluded"}}
	var first, again bytes.Buffer
	summary, err := packUpper(upper, &first, options)
	if err != nil || summary.Skipped != 1 {
		t.Fatalf("%+v, %v", summary, err)
	}
	if _, err := packUpper(upper, &again, options); err != nil || !bytes.Equal(first.Bytes(), again.Bytes()) {
		t.Errorf("the same files gave another archive (%v)", err)
	}
	copied := t.TempDir()
	result, skipped, err := Commit(upper, copied, options, bounds, func(int64, int64) {}, func() {})
	if err != nil || skipped != 1 || !result.Exact {
		t.Fatalf("%+v, %d, %v", result, skipped, err)
	}
	if other, err := unpackInto(t, t.TempDir(), first.Bytes(), bounds); err != nil || other != result {
		t.Errorf("committed %+v, unpacked %+v (%v)", result, other, err)
	}
	if !isOpaque(copied, "d") {
		t.Error("d is not opaque any more")
	}
	for _, name := range []string{"", "d", "d/file", "d/same", "d/gone", "link"} {
		had, has := stat(t, directory, name), stat(t, copied, name)
		if had.Mode != has.Mode || had.Uid != has.Uid || had.Size != has.Size && had.Mode&unix.S_IFMT != unix.S_IFDIR ||
			had.Rdev != has.Rdev || name != "d/gone" && had.Mtim != has.Mtim {
			t.Errorf("%s was %+v and is %+v", name, had, has)
		}
	}
	if stat(t, copied, "d/file").Ino != stat(t, copied, "d/same").Ino {
		t.Error("the hard link is a copy")
	}
	for _, name := range []string{"excluded", "socket"} {
		if _, err := os.Lstat(filepath.Join(copied, FilesName, name)); err == nil {
			t.Errorf("%s is in the layer", name)
		}
	}
	checkMadeAgain(t, copied, first.Bytes())
}

// TestALayerIsWhatWasCopied changes the files as soon as it may, while the layer is still being hashed.
func TestALayerIsWhatWasCopied(t *testing.T) {
	needRoot(t)
	upper, copied := t.TempDir(), t.TempDir()
	large := make([]byte, 9*stream.BehindBlock+5)
	for at := range large {
		large[at] = byte(at * at >> 7)
	}
	clear(large[stream.BehindBlock : 3*stream.BehindBlock]) // becomes a hole
	holes := append(bytes.Clone(large), make([]byte, 2*stream.BehindBlock)...)
	contents := map[string][]byte{"a": []byte("small"), "b": large, "c": large[:stream.BehindBlock], "d": nil, "e": holes}
	for name, content := range contents {
		if err := os.WriteFile(filepath.Join(upper, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	options, within := pack.Options{Bytes: 1 << 30, Entries: 100}, unpack.Bounds{Bytes: 1 << 30, Entries: 100}
	var archive bytes.Buffer
	if _, err := packUpper(upper, &archive, options); err != nil {
		t.Fatal(err)
	}
	change := func() {
		for name := range contents {
			if err := os.WriteFile(filepath.Join(upper, name), []byte("changed"), 0o600); err != nil {
				t.Error(err)
			}
		}
	}
	result, _, err := Commit(upper, copied, options, within, func(int64, int64) {}, change)
	if err != nil || result.DiffID != digestOf(archive.Bytes()) {
		t.Fatalf("%+v, %v; wanted %s", result, err, digestOf(archive.Bytes()))
	}
	checkMadeAgain(t, copied, archive.Bytes())
}

// packUpper writes the archive of a directory.
func packUpper(directory string, out io.Writer, options pack.Options) (pack.Summary, error) {
	archive := tar.NewWriter(out)
	summary, err := pack.Upper(directory, func(header *tar.Header, content io.Reader) error {
		if err := archive.WriteHeader(header); err != nil {
			return err
		}
		_, err := io.Copy(archive, content)
		return err
	}, options)
	return summary, errors.Join(err, archive.Close())
}

func TestPackingHasBounds(t *testing.T) {
	needRoot(t)
	upper := t.TempDir()
	if err := os.Truncate(create(t, upper, "sparse"), 1<<40); err != nil {
		t.Fatal(err)
	}
	create(t, upper, "more")
	for _, options := range []pack.Options{{Bytes: 1 << 30, Entries: 10}, {Bytes: 1 << 41, Entries: 1}} {
		_, err := packUpper(upper, &bytes.Buffer{}, options)
		var failure *report.Failure
		if !errors.As(err, &failure) || failure.Code != report.QuotaExceeded {
			t.Errorf("%+v: %v", options, err)
		}
	}
}

func create(t *testing.T, directory, name string) string {
	t.Helper()
	path := filepath.Join(directory, name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func digestOf(data []byte) string {
	digest := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(digest[:])
}

func TestAMovedFileIsNoticed(t *testing.T) {
	needRoot(t)
	directory, data := unpacked(t, entry{name: "file", content: "content"})
	checkMadeAgain(t, directory, data)
	if err := os.WriteFile(filepath.Join(directory, FilesName, "file"), []byte("CONTENT"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Pack(directory, digestOf(data), &bytes.Buffer{}); err == nil {
		t.Error("another content was packed under the old digest")
	}
}
