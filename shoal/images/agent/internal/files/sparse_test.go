package files

import (
	"archive/tar"
	"bytes"
	"os"
	"strings"
	"syscall"
	"testing"
)

const sparseSize = 64 << 20

// sparseContent is mostly zeros, with data at the beginning, in the middle and not at the end.
func sparseContent() []byte {
	content := make([]byte, sparseSize)
	copy(content, "begin")
	copy(content[sparseSize/2+77:], strings.Repeat("middle", 5000))
	return content
}

func mustBeSparse(t *testing.T, path string, content []byte) {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if st.Size != int64(len(content)) || st.Blocks*512 > 1<<20 {
		t.Fatalf("%s has %d bytes in %d", path, st.Size, st.Blocks*512)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("%s holds something else (%v)", path, err)
	}
}

func TestSparseFilesStaySparse(t *testing.T) {
	c, dir := connect(t), t.TempDir()
	content := sparseContent()
	if a := c.put(object{"op": "write", "path": dir + "/f"}, content).mustSucceed(t); a.ok["size"] != float64(sparseSize) {
		t.Fatal(a.ok)
	}
	mustBeSparse(t, dir+"/f", content)
	members := archive(t, file("g", string(content)), tar.Header{Typeflag: tar.TypeReg, Name: "zeros", Linkname: string(content[100 : 1<<20])})
	c.put(object{"op": "unpack", "path": dir + "/tree"}, members).mustSucceed(t)
	mustBeSparse(t, dir+"/tree/g", content)
	mustBeSparse(t, dir+"/tree/zeros", content[100:1<<20])
	source, _ := os.Open(dir + "/f")
	target, _ := os.Create(dir + "/copy")
	defer source.Close()
	defer target.Close()
	if err := copyContent(nil, int(source.Fd()), int(target.Fd())); err != nil {
		t.Fatal(err)
	}
	mustBeSparse(t, dir+"/copy", content)
	c.put(object{"op": "write", "path": dir + "/f", "append": true}, make([]byte, 8192)).mustSucceed(t)
	if info, _ := os.Stat(dir + "/f"); info.Size() != sparseSize+8192 {
		t.Fatal(info.Size())
	}
}

func TestTheLongestNamesCanBeWritten(t *testing.T) {
	c, dir := connect(t), t.TempDir()
	name := dir + "/" + strings.Repeat("n", 255)
	for range 2 {
		c.put(object{"op": "write", "path": name}, []byte("x")).mustSucceed(t)
	}
	mustRead(t, name, "x")
}
