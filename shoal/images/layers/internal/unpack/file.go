package unpack

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sys/unix"

	"shoal/layers/internal/report"
)

// holeSize is the least run of zeros, aligned to itself, that becomes a hole: what a filesystem allocates at once or more.
const holeSize = 64 << 10

var zeros = make([]byte, holeSize)

// file writes a regular file. Long runs of zeros become holes, so that a sparse file takes no more room than it did.
func (u *Unpacker) file(parent int, base string, header *tar.Header, content io.Reader) error {
	if isSparse(header) {
		u.summary.Sparse = true
	}
	if header.Size < 0 || header.Size > u.bounds.Bytes-u.summary.Size {
		return report.Invalid("the archive's files are larger than %d bytes, which is the most", u.bounds.Bytes)
	}
	fd, err := unix.Openat(parent, base, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("make %.80q: %w", header.Name, err)
	}
	defer unix.Close(fd)
	if err := u.write(fd, header, content); err != nil {
		return err
	}
	if err := setAttributes(fd, header); err != nil {
		return err
	}
	times := []unix.Timespec{accessTime(header), modifyTime(header)}
	if err := unix.UtimesNanoAt(parent, base, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set the times of %.80q: %w", header.Name, err)
	}
	return nil
}

func (u *Unpacker) write(fd int, header *tar.Header, content io.Reader) error {
	var at int64
	holeAtEnd := false
	for at < header.Size {
		want := min(int64(len(u.buffer)), header.Size-at)
		n, err := io.ReadFull(content, u.buffer[:want])
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return ReadError(err)
		}
		if holeAtEnd, err = writeAround(fd, at, u.buffer[:n]); err != nil {
			return fmt.Errorf("write %.80q: %w", header.Name, err)
		}
		if u.Follow != nil {
			if err := u.Follow(fd, at, int64(n)); err != nil {
				return err
			}
		}
		at += int64(n)
		u.summary.Size += int64(n)
		u.progress(u.summary.Size, u.summary.Entries)
	}
	if holeAtEnd {
		if err := unix.Ftruncate(fd, header.Size); err != nil {
			return fmt.Errorf("write %.80q: %w", header.Name, err)
		}
	}
	return nil
}

// writeAround writes a block at its place and leaves out the runs of zeros. It tells whether the block ends with one.
func writeAround(fd int, at int64, block []byte) (bool, error) {
	hole := false
	for len(block) > 0 {
		// As much as is written at once: up to the next hole.
		data := 0
		for data < len(block) && !(len(block)-data >= holeSize && bytes.Equal(block[data:data+holeSize], zeros)) {
			data += min(holeSize, len(block)-data)
		}
		if hole = data == 0; hole {
			data = holeSize
		} else if err := writeAll(fd, at, block[:data]); err != nil {
			return false, err
		}
		at += int64(data)
		block = block[data:]
	}
	return hole, nil
}

func writeAll(fd int, at int64, data []byte) error {
	for len(data) > 0 {
		n, err := unix.Pwrite(fd, data, at)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		at += int64(n)
		data = data[n:]
	}
	return nil
}

func isSparse(header *tar.Header) bool {
	if header.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for record := range header.PAXRecords {
		if strings.HasPrefix(record, "GNU.sparse.") {
			return true
		}
	}
	return false
}
