package files

import (
	"bytes"
	"syscall"
)

const (
	// holeBlock is the block that every usual file system allocates by.
	holeBlock = 4 << 10
	seekData  = 3
)

var zeros [holeBlock]byte

// sparseWriter writes to a new file, or one that was emptied, and leaves out whole blocks of zeros, so that a sparse
// file stays sparse on its way. close is needed at the end, if the file ends in zeros.
type sparseWriter struct {
	fd int
	at int64
	// end is where the file ends so far: before at if the last bytes were zeros.
	end int64
}

func (s *sparseWriter) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		n, hole := nextRun(p[done:])
		if !hole {
			if err := writeAllAt(s.fd, p[done:done+n], s.at); err != nil {
				return done, err
			}
		}
		s.at += int64(n)
		if !hole {
			s.end = s.at
		}
		done += n
	}
	return len(p), nil
}

// skip leaves out bytes that are zeros.
func (s *sparseWriter) skip(n int64) { s.at += n }

// close gives the file its size, if its last bytes were left out.
func (s *sparseWriter) close() error {
	if s.end == s.at {
		return nil
	}
	return again(func() error { return syscall.Ftruncate(s.fd, s.at) })
}

// nextRun returns the length of the zeros, or of the other bytes, with which p begins.
func nextRun(p []byte) (n int, hole bool) {
	hole = isHole(p)
	for n < len(p) && isHole(p[n:]) == hole {
		n += min(holeBlock, len(p)-n)
	}
	return n, hole
}

// isHole reports whether p begins with a block of zeros, or consists of zeros.
func isHole(p []byte) bool {
	n := min(holeBlock, len(p))
	return p[0] == 0 && bytes.Equal(p[:n], zeros[:n])
}

func writeAllAt(fd int, p []byte, at int64) error {
	for len(p) > 0 {
		n, err := syscall.Pwrite(fd, p, at)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		p = p[n:]
		at += int64(n)
	}
	return nil
}

// dataFrom returns the offset of the next data at or after an offset. If the rest is a hole it returns false. A file
// system without holes has data everywhere.
func dataFrom(fd int, offset int64) (int64, bool) {
	at, err := syscall.Seek(fd, offset, seekData)
	if err == syscall.ENXIO {
		return 0, false
	}
	if err != nil {
		return offset, true
	}
	return at, true
}
