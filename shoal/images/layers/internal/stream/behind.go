package stream

import "hash"

const (
	behindBlock  = 256 << 10
	behindBlocks = 4
)

// Behind hashes what is written to it in a goroutine of its own, at most some blocks behind: copying and hashing a layer take
// about as long as each other.
type Behind struct {
	hash  hash.Hash
	block []byte // that is being filled
	full  chan []byte
	empty chan []byte
	done  chan struct{}
}

// HashBehind starts one. Sum or Close ends it.
func HashBehind(hash hash.Hash) *Behind {
	b := &Behind{
		hash: hash, full: make(chan []byte, behindBlocks), empty: make(chan []byte, behindBlocks), done: make(chan struct{}),
	}
	for range behindBlocks {
		b.empty <- nil
	}
	go b.run()
	return b
}

func (b *Behind) run() {
	defer close(b.done)
	for block := range b.full {
		b.hash.Write(block)
		b.empty <- block[:0]
	}
}

// Write copies the data and never fails.
func (b *Behind) Write(data []byte) (int, error) {
	written := len(data)
	for len(data) > 0 {
		if b.block == nil {
			if b.block = <-b.empty; b.block == nil {
				b.block = make([]byte, 0, behindBlock)
			}
		}
		n := min(len(data), cap(b.block)-len(b.block))
		b.block = append(b.block, data[:n]...)
		data = data[n:]
		if len(b.block) == cap(b.block) {
			b.full <- b.block
			b.block = nil
		}
	}
	return written, nil
}

// Sum returns the hash of all that was written. Nothing can be written afterwards.
func (b *Behind) Sum() []byte {
	b.Close()
	return b.hash.Sum(nil)
}

// Close waits until all is hashed. Idempotent.
func (b *Behind) Close() {
	select {
	case <-b.done:
		return
	default:
	}
	if len(b.block) > 0 {
		b.full <- b.block
		b.block = nil
	}
	close(b.full)
	<-b.done
}
