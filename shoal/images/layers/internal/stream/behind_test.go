package stream

import (
	"bytes"
	"crypto/sha256"
	"testing"
)

func TestHashBehindIsTheHash(t *testing.T) {
	for _, size := range []int{0, 1, BehindBlock - 1, BehindBlock, BehindBlock + 1, 7*BehindBlock + 3} {
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
		if found, err := behind.Sum(); err != nil || !bytes.Equal(found, wanted[:]) {
			t.Errorf("%d bytes: %x (%v), not %x", size, found, err, wanted)
		}
		behind.Close()
	}
}
