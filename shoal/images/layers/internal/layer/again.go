package layer

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	"github.com/vbatts/tar-split/tar/storage"

	"shoal/layers/internal/report"
	"shoal/layers/internal/rootdir"
	"shoal/layers/internal/stream"
)

// Pack writes the archive of a layer's directory, as it was when the layer was unpacked. If the files have changed since,
// so that it would not be the archive of the diff id, it fails, after it was written.
func Pack(directory, diffID string, out io.Writer) error {
	root, err := rootdir.Open(filepath.Join(directory, FilesName))
	if err != nil {
		return err
	}
	defer root.Close()
	file, err := os.Open(filepath.Join(directory, splitName))
	if err != nil {
		return err
	}
	defer file.Close()
	compressed, err := zstd.NewReader(file)
	if err != nil {
		return err
	}
	defer compressed.Close()
	digest := sha256.New()
	buffered := stream.Buffered(io.MultiWriter(out, digest))
	if err := again(root, storage.NewJSONUnpacker(compressed), buffered); err != nil {
		return fmt.Errorf("make the archive of %s again: %w", filepath.Base(directory), err)
	}
	if err := buffered.Flush(); err != nil {
		return err
	}
	if found := "sha256:" + hex.EncodeToString(digest.Sum(nil)); found != diffID {
		return report.Fail(report.Internal, "the layer's files have changed: they are %s, not %s", found, diffID)
	}
	return nil
}

// again writes headers and padding as they were stored, and between them the files.
func again(root *rootdir.Root, split storage.Unpacker, out io.Writer) error {
	buffer := make([]byte, 256<<10)
	for {
		entry, err := split.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if entry.Type == storage.SegmentType {
			_, err = out.Write(entry.Payload)
		} else if entry.Size > 0 {
			err = copyFile(root, entry.GetName(), out, buffer)
		}
		if err != nil {
			return err
		}
	}
}

func copyFile(root *rootdir.Root, name string, out io.Writer, buffer []byte) error {
	clean, err := rootdir.Clean(name)
	if err != nil {
		return err
	}
	file, err := root.OpenFile(clean)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.CopyBuffer(onlyWriter{out}, onlyReader{file}, buffer)
	return err
}

// onlyWriter and onlyReader hide the shortcuts of a file, which would not use the buffer.
type (
	onlyWriter struct{ io.Writer }
	onlyReader struct{ io.Reader }
)
