package layer

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	"github.com/vbatts/tar-split/tar/storage"
	"golang.org/x/sys/unix"

	"shoal/layers/internal/pack"
	"shoal/layers/internal/rootdir"
	"shoal/layers/internal/stream"
	"shoal/layers/internal/unpack"
)

// Commit makes a layer's directory out of what a container has changed, in one pass: each file is read once, written, and
// hashed as it would stand in the archive. It tells how much an archive cannot hold, which is left out. `copied` is called
// once the upper directory is not looked at any more; then it may change.
func Commit(
	upper, directory string, options pack.Options, bounds unpack.Bounds, progress func(bytes, entries int64), copied func(),
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
	copied()
	if err := compressed.Close(); err != nil {
		return Result{}, 0, err
	}
	sum, err := digest.Sum()
	if err != nil {
		return Result{}, 0, err
	}
	return Result{"sha256:" + hex.EncodeToString(sum), summary.Size, summary.Entries, true}, packed.Skipped, nil
}

// committer makes the files, and what of the archive is not in them.
type committer struct {
	out     *splitter
	archive *tar.Writer
	files   *unpack.Unpacker
	split   storage.Packer
	large   *os.File // that is being written
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
	if c.out.isLarge = header.Size >= stream.BehindBlock; c.out.isLarge {
		c.files.Follow = func(fd int, from, size int64) error { return c.follow(fd, from, size, header.Size) }
	}
	err := c.files.Entry(header, io.TeeReader(content, c.archive))
	c.out.inFile, c.files.Follow = false, nil
	if err != nil {
		return err
	}
	_, err = c.split.AddEntry(fileEntry(header))
	return err
}

// follow has a part of a large file hashed as it was written.
func (c *committer) follow(fd int, from, size, whole int64) error {
	if from == 0 {
		own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("keep a file open: %w", err)
		}
		c.large = os.NewFile(uintptr(own), "a file of the layer")
		if err := unix.Ftruncate(own, whole); err != nil { // or a hole at its end would come too late
			return fmt.Errorf("set the size of a file: %w", err)
		}
	}
	c.out.digest.File(c.large, from, size, from+size == whole)
	return nil
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

// splitter hashes the archive, and keeps what of it is not in the files. isLarge: the file is hashed where it was written.
type splitter struct {
	digest  *stream.Behind
	other   []byte
	inFile  bool
	isLarge bool
}

func (s *splitter) Write(data []byte) (int, error) {
	if s.inFile && s.isLarge {
		return len(data), nil
	}
	s.digest.Write(data)
	if !s.inFile {
		s.other = append(s.other, data...)
	}
	return len(data), nil
}
