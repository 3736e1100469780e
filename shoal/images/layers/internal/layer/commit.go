package layer

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	"github.com/vbatts/tar-split/tar/storage"

	"shoal/layers/internal/pack"
	"shoal/layers/internal/rootdir"
	"shoal/layers/internal/stream"
	"shoal/layers/internal/unpack"
)

// Commit makes a layer's directory out of what a container has changed, in one pass: each file is read once, hashed as it
// would stand in the archive, and written. It tells how much an archive cannot hold, which is left out.
func Commit(
	upper, directory string, options pack.Options, bounds unpack.Bounds, progress func(bytes, entries int64),
) (result Result, skipped int64, err error) {
	files := filepath.Join(directory, FilesName)
	if err := os.Mkdir(files, 0o755); err != nil {
		return Result{}, 0, err
	}
	root, err := rootdir.Open(files)
	if err != nil {
		return Result{}, 0, err
	}
	defer root.Close()
	split, err := os.OpenFile(filepath.Join(directory, splitName), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return Result{}, 0, err
	}
	defer func() { err = errors.Join(err, split.Close()) }()
	compressed, err := zstd.NewWriter(split, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return Result{}, 0, err
	}
	digest := stream.HashBehind(sha256.New())
	defer digest.Close()
	out := &splitter{digest: digest}
	c := &committer{
		out: out, archive: tar.NewWriter(out), files: unpack.New(root, bounds, progress),
		split: storage.NewJSONPacker(compressed),
	}
	packed, err := pack.Upper(upper, c.entry, options)
	if err != nil {
		return Result{}, 0, err
	}
	summary, err := c.finish()
	if err != nil {
		return Result{}, 0, err
	}
	result = Result{"sha256:" + hex.EncodeToString(digest.Sum()), summary.Size, summary.Entries, true}
	return result, packed.Skipped, compressed.Close()
}

// committer makes the files, and what of the archive is not in them.
type committer struct {
	out     *splitter
	archive *tar.Writer
	files   *unpack.Unpacker
	split   storage.Packer
}

func (c *committer) entry(header *tar.Header, content io.Reader) error {
	if err := c.archive.WriteHeader(header); err != nil {
		return err
	}
	if err := c.flush(); err != nil {
		return err
	}
	if header.Size == 0 {
		return c.files.Entry(header, content)
	}
	c.out.inFile = true
	err := c.files.Entry(header, io.TeeReader(content, c.archive))
	c.out.inFile = false
	if err != nil {
		return err
	}
	_, err = c.split.AddEntry(fileEntry(header))
	return err
}

// flush stores headers and padding.
func (c *committer) flush() error {
	_, err := c.split.AddEntry(storage.Entry{Type: storage.SegmentType, Payload: c.out.other})
	c.out.other = nil
	return err
}

func (c *committer) finish() (unpack.Summary, error) {
	if err := c.archive.Close(); err != nil {
		return unpack.Summary{}, err
	}
	if err := c.flush(); err != nil {
		return unpack.Summary{}, err
	}
	return c.files.Finish()
}

// splitter hashes the archive, and keeps what of it is not in the files.
type splitter struct {
	digest *stream.Behind
	other  []byte
	inFile bool
}

func (s *splitter) Write(data []byte) (int, error) {
	s.digest.Write(data)
	if !s.inFile {
		s.other = append(s.other, data...)
	}
	return len(data), nil
}
