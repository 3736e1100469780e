// Package layer makes a layer's directory out of its archive, and the archive again out of the directory.
//
// Beside the files lies what of the archive is not in them (headers, padding: `split.zst`, by tar-split), so that the same
// bytes, and with them the same digest, can be made again on any node.
package layer

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"

	"shoal/layers/internal/rootdir"
	"shoal/layers/internal/stream"
	"shoal/layers/internal/unpack"
)

// Names in a layer's directory.
const (
	FilesName = "fs"
	splitName = "split.zst"
)

// Result tells what a layer is. Exact: its archive can be made again.
type Result struct {
	DiffID  string `json:"diff_id"`
	Size    int64  `json:"size"`    // bytes of its files
	Entries int64  `json:"entries"` // files, directories, links
	Exact   bool   `json:"exact"`
}

// Unpack reads an uncompressed archive into `fs` below the directory, which is made. An archive whose digest is not the
// promised diff id ("": none is) is refused; the caller removes what was written.
func Unpack(
	archive io.Reader, directory, diffID string, bounds unpack.Bounds, progress func(bytes, entries int64),
) (Result, error) {
	files := filepath.Join(directory, FilesName)
	if err := os.Mkdir(files, 0o755); err != nil {
		return Result{}, err
	}
	root, err := rootdir.Open(files)
	if err != nil {
		return Result{}, err
	}
	defer root.Close()
	// An archive is larger than its files: a header of half a kilobyte or more each, and padding.
	meter := stream.NewMeter(archive, bounds.Bytes+bounds.Entries*1536)
	summary, exact, err := unpackSplit(meter, root, filepath.Join(directory, splitName), bounds, progress)
	if err != nil {
		return Result{}, err
	}
	if err := meter.Check(diffID, "the layer"); err != nil {
		return Result{}, err
	}
	return Result{meter.Digest(), summary.Size, summary.Entries, exact}, nil
}

// unpackSplit unpacks, and writes what is not in the files to `split`. It tells whether both give the archive again.
func unpackSplit(
	archive io.Reader, root *rootdir.Root, split string, bounds unpack.Bounds, progress func(bytes, entries int64),
) (summary unpack.Summary, exact bool, err error) {
	file, err := os.OpenFile(split, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return summary, false, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	compressed, err := zstd.NewWriter(file, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return summary, false, err
	}
	packer := &tolerantPacker{Packer: storage.NewJSONPacker(compressed)}
	tee, err := asm.NewInputTarStream(archive, packer, nil)
	if err != nil {
		return summary, false, err
	}
	if summary, err = unpack.Layer(tee, root, bounds, progress); err != nil {
		return summary, false, err
	}
	// The digest is of all bytes, also of those behind the archive's end.
	if _, err := io.Copy(io.Discard, tee); err != nil {
		return summary, false, unpack.ReadError(err)
	}
	return summary, !summary.Sparse && !packer.duplicate, compressed.Close()
}

// tolerantPacker takes an archive that has a name twice, as tar's own appending makes them; tar-split does not.
type tolerantPacker struct {
	storage.Packer
	duplicate bool
}

func (p *tolerantPacker) AddEntry(entry storage.Entry) (int, error) {
	position, err := p.Packer.AddEntry(entry)
	if errors.Is(err, storage.ErrDuplicatePath) {
		p.duplicate = true
		return 0, nil
	}
	return position, err
}

// Pack writes the archive of a layer's directory, as it was when the layer was unpacked.
func Pack(directory string, out io.Writer) error {
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
	if err := asm.WriteOutputTarStream(files{root}, storage.NewJSONUnpacker(compressed), out); err != nil {
		return fmt.Errorf("make the archive of %s again: %w", filepath.Base(directory), err)
	}
	return nil
}

// files gives tar-split the contents of files, by their names in the archive.
type files struct{ root *rootdir.Root }

func (f files) Get(name string) (io.ReadCloser, error) {
	clean, err := rootdir.Clean(name)
	if err != nil {
		return nil, err
	}
	return f.root.OpenFile(clean)
}
