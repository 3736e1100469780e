// Package layer makes a layer's directory out of its archive, and the archive again out of the directory.
//
// Beside the files lies what of the archive is not in them (headers, padding: `split.zst`, by tar-split), so that the same
// bytes, and with them the same digest, can be made again on any node.
package layer

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	splittar "github.com/vbatts/tar-split/archive/tar"
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
	ahead := stream.ReadAhead(meter) // one core decompresses and hashes while another writes files
	summary, exact, err := unpackSplit(ahead, root, filepath.Join(directory, splitName), bounds, progress)
	ahead.Close() // the meter is nobody else's from here on
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
	u := &unpacking{
		reader: splittar.NewReader(archive), files: unpack.New(root, bounds, progress),
		split: storage.NewJSONPacker(compressed), exact: true,
	}
	u.reader.RawAccounting = true
	if err := u.entries(); err != nil {
		return summary, false, err
	}
	if err := u.padding(archive); err != nil {
		return summary, false, err
	}
	summary, err = u.files.Finish()
	if err != nil {
		return summary, false, err
	}
	return summary, u.exact && !summary.Sparse, compressed.Close()
}

// unpacking reads an archive once, for the files and for what is not in them.
type unpacking struct {
	reader *splittar.Reader
	files  *unpack.Unpacker
	split  storage.Packer
	exact  bool
}

func (u *unpacking) entries() error {
	for {
		header, err := u.reader.Next()
		if err != nil && !errors.Is(err, io.EOF) {
			return unpack.ReadError(err)
		}
		if err := u.segment(u.reader.RawBytes()); err != nil || header == nil {
			return err
		}
		if err := u.entry(standard(header)); err != nil {
			return err
		}
	}
}

func (u *unpacking) entry(header *tar.Header) error {
	if err := u.files.Entry(header, u.reader); err != nil {
		return err
	}
	if header.Size > 0 {
		// Marks of union filesystems have no file that holds what they hold.
		if skipped, err := io.Copy(io.Discard, u.reader); err != nil {
			return unpack.ReadError(err)
		} else if skipped > 0 {
			u.exact = false
		}
	}
	_, err := u.split.AddEntry(fileEntry(header))
	if errors.Is(err, storage.ErrDuplicatePath) { // as tar's own appending makes them
		u.exact = false
	} else if err != nil {
		return err
	}
	return u.segment(u.reader.RawBytes())
}

func (u *unpacking) segment(raw []byte) error {
	if len(raw) == 0 {
		return nil
	}
	_, err := u.split.AddEntry(storage.Entry{Type: storage.SegmentType, Payload: raw})
	return err
}

// padding stores what is behind the archive's end, of which the digest is, too.
func (u *unpacking) padding(archive io.Reader) error {
	buffer := make([]byte, 64<<10)
	for {
		n, err := archive.Read(buffer)
		if err := u.segment(buffer[:n]); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return unpack.ReadError(err)
		}
	}
}

// standard turns a header of the reader that keeps raw bytes into one of the standard library's, of which it is a copy.
func standard(header *splittar.Header) *tar.Header {
	return &tar.Header{
		Typeflag: header.Typeflag, Name: header.Name, Linkname: header.Linkname, Size: header.Size, Mode: header.Mode,
		Uid: header.Uid, Gid: header.Gid, ModTime: header.ModTime, AccessTime: header.AccessTime,
		Devmajor: header.Devmajor, Devminor: header.Devminor, PAXRecords: header.PAXRecords,
	}
}

// fileEntry stands where the content of a file is. Its checksum is left out: whoever makes the archive again compares the
// digest of all of it.
func fileEntry(header *tar.Header) storage.Entry {
	file := storage.Entry{Type: storage.FileType, Size: header.Size}
	file.SetName(header.Name)
	return file
}
