package stream

import (
	"errors"
	"fmt"
	"hash"
	"os"
)

const (
	// BehindBlock is how much is hashed at once.
	BehindBlock  = 256 << 10
	behindBlocks = 4
	// behindPieces wait at most: so many files may be open for it.
	behindPieces = 256
)

// Behind hashes in a goroutine of its own: copying and hashing a layer take about as long as each other. What is written to it
// is copied, at most some blocks; large files it reads by itself, since memory that one core has filled is slow to fill for
// another one.
type Behind struct {
	hash   hash.Hash
	block  []byte // that is being filled
	pieces chan behindPiece
	empty  chan []byte
	done   chan struct{}
	err    error
}

// behindPiece is a block, or a part of a file.
type behindPiece struct {
	block []byte
	file  *os.File
	from  int64
	size  int64
	last  bool // of the file, which is closed
}

// HashBehind starts one. Sum or Close ends it.
func HashBehind(hash hash.Hash) *Behind {
	b := &Behind{
		hash: hash, pieces: make(chan behindPiece, behindPieces), empty: make(chan []byte, behindBlocks),
		done: make(chan struct{}),
	}
	for range behindBlocks {
		b.empty <- nil
	}
	go b.run()
	return b
}

func (b *Behind) run() {
	defer close(b.done)
	var buffer []byte
	for piece := range b.pieces {
		if piece.file == nil {
			b.hash.Write(piece.block)
			b.empty <- piece.block[:0]
			continue
		}
		if buffer == nil {
			buffer = make([]byte, BehindBlock)
		}
		if err := b.part(piece, buffer); err != nil && b.err == nil {
			b.err = err
		}
	}
}

func (b *Behind) part(piece behindPiece, buffer []byte) (err error) {
	if piece.last {
		defer func() { err = errors.Join(err, piece.file.Close()) }()
	}
	for at, end := piece.from, piece.from+piece.size; at < end; {
		part := buffer[:min(int64(len(buffer)), end-at)]
		if _, err := piece.file.ReadAt(part, at); err != nil {
			return fmt.Errorf("hash what was written: %w", err)
		}
		b.hash.Write(part)
		at += int64(len(part))
	}
	return nil
}

// Write copies the data and never fails.
func (b *Behind) Write(data []byte) (int, error) {
	written := len(data)
	for len(data) > 0 {
		if b.block == nil {
			if b.block = <-b.empty; b.block == nil {
				b.block = make([]byte, 0, BehindBlock)
			}
		}
		n := min(len(data), cap(b.block)-len(b.block))
		b.block = append(b.block, data[:n]...)
		data = data[n:]
		if len(b.block) == cap(b.block) {
			b.pass()
		}
	}
	return written, nil
}

// File appends a part of a file, which is not changed any more. With its last one the file is closed.
func (b *Behind) File(file *os.File, from, size int64, last bool) {
	b.pass()
	b.pieces <- behindPiece{file: file, from: from, size: size, last: last}
}

// Sum returns the hash of all that was written. Nothing can be written afterwards.
func (b *Behind) Sum() ([]byte, error) {
	b.Close()
	return b.hash.Sum(nil), b.err
}

// Close waits until all is hashed. Idempotent.
func (b *Behind) Close() {
	select {
	case <-b.done:
		return
	default:
	}
	b.pass()
	close(b.pieces)
	<-b.done
}

// pass hands over the block that is being filled.
func (b *Behind) pass() {
	if len(b.block) > 0 {
		b.pieces <- behindPiece{block: b.block}
		b.block = nil
	}
}
