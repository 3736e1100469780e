package stream

import (
	"bytes"
	"crypto/sha256"
	"testing"
)

func TestHashBehindIsTheHash(t *testing.T) {
	for _, size := range []int{0, 1, behindBlock - 1, behindBlock, behindBlock + 1, 7*behindBlock + 3} {
		data := bytes.Repeat([]byte("abcdefg"), size/7+1)[:size]
		behind := HashBehind(sha256.New())
		for rest := data; len(rest) > 0; {
			n, err := behind.Write(rest[:min(len(rest), 100_001)])
			if err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		wanted := sha256.Sum256(data)
		if found := behind.Sum(); !bytes.Equal(found, wanted[:]) {
			t.Errorf("%d bytes: %x, not %x", size, found, wanted)
		}
		behind.Close()
	}
}
