package layer

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"shoal/layers/internal/stream"
	"shoal/layers/internal/unpack"
)

// FuzzUnpack lets any bytes be an archive: nothing may be written outside of the layer, and what is unpacked exactly can be
// packed again into the same bytes.
func FuzzUnpack(f *testing.F) {
	if os.Geteuid() != 0 {
		f.Skip("devices and overlayfs's attributes are root's to make")
	}
	t := &testing.T{}
	f.Add(archive(t, entry{name: "d/", kind: tar.TypeDir}, entry{name: "d/.wh..wh..opq"}, entry{name: "d/file", content: "x"}))
	f.Add(archive(t, entry{name: "link", kind: tar.TypeSymlink, link: "../outside"}, entry{name: "link/owned", content: "x"}))
	f.Add(archive(t, entry{name: "hard", kind: tar.TypeLink, link: "a"}, entry{name: ".wh.gone"}, entry{name: "pipe", kind: tar.TypeFifo}))
	f.Fuzz(func(t *testing.T, data []byte) {
		above := t.TempDir()
		directory := filepath.Join(above, "layer")
		if err := os.Mkdir(directory, 0o700); err != nil {
			t.Fatal(err)
		}
		plain, err := stream.Decompress(bytes.NewReader(data))
		if err != nil {
			return
		}
		within := unpack.Bounds{Bytes: 1 << 20, Entries: 100}
		result, err := Unpack(plain, directory, "", within, func(int64, int64) {})
		if found, _ := os.ReadDir(above); len(found) != 1 {
			t.Fatalf("beside the layer there is %v", found)
		}
		if err != nil || !result.Exact || stream.Detect(data) != stream.None {
			return
		}
		checkMadeAgain(t, directory, data)
	})
}
