package proc

import (
	"bytes"
	"math/rand"
	"testing"
	"time"
)

// text returns the bytes of a test stream from an offset on, so that any part of it can be checked.
func text(offset int64, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		at := offset + int64(i)
		p[i] = byte(at) ^ byte(at>>8) ^ byte(at>>16)
	}
	return p
}

// stalled waits until Append waits for room in a ring.
func stalled(t *testing.T, ring *Ring) {
	t.Helper()
	end := time.Now().Add(10 * time.Second)
	for now, _ := ring.Stalls(); !now; now, _ = ring.Stalls() {
		if time.Now().After(end) {
			t.Fatal("it took more than it holds")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestARingKeepsWhatNobodyConsumed(t *testing.T) {
	random := rand.New(rand.NewSource(1))
	for range 20 {
		ring := NewRing(-1, false)
		var end, at int64
		for range 400 {
			if n := random.Intn(100_000); end+int64(n)-at <= RingSize {
				ring.Append(text(end, n))
				end += int64(n)
			}
			p := make([]byte, random.Intn(80_000))
			from, n, _ := ring.Read(at, p)
			if from != at || !bytes.Equal(p[:n], text(at, n)) {
				t.Fatalf("at %d of %d: from %d, %d bytes", at, end, from, n)
			}
			at += int64(n)
			ring.Consume(at)
		}
		ring.Close()
		for done := false; !done; {
			p := make([]byte, 10_000)
			var n int
			if _, n, done = ring.Read(at, p); !bytes.Equal(p[:n], text(at, n)) {
				t.Fatalf("the rest at %d differs", at)
			}
			at += int64(n)
		}
		if at != end {
			t.Fatalf("ended at %d of %d", at, end)
		}
	}
}

func TestAFullRingHoldsItsWriterUp(t *testing.T) {
	ring := NewRing(-1, false)
	written := make(chan struct{})
	go func() {
		ring.Append(text(0, RingSize+10))
		close(written)
	}()
	stalled(t, ring)
	if _, count := ring.Stalls(); count != 1 {
		t.Errorf("%d stalls", count)
	}
	ring.Consume(10)
	<-written
	if base, end, unread := ring.Span(); base != 10 || end != RingSize+10 || unread != RingSize {
		t.Errorf("span %d %d %d", base, end, unread)
	}
}

func TestAnAbandonedRingTakesEverything(t *testing.T) {
	ring := NewRing(-1, false)
	written := make(chan struct{})
	go func() {
		ring.Append(text(0, 3*RingSize))
		close(written)
	}()
	time.Sleep(10 * time.Millisecond)
	ring.Abandon()
	<-written
	ring.Append(text(0, RingSize))
}

func TestATailDropsOnlyWhileNobodyReads(t *testing.T) {
	ring := NewRing(-1, true)
	ring.Append(text(0, 3*RingSize+5))
	base, end, _ := ring.Span()
	if end != 3*RingSize+5 || base != end-RingSize {
		t.Fatalf("span %d %d", base, end)
	}
	p := make([]byte, 100)
	if from, n, _ := ring.Read(0, p); from != base || !bytes.Equal(p[:n], text(from, n)) {
		t.Errorf("from %d, %d bytes", from, n)
	}
	wake := make(chan struct{}, 1)
	ring.Attach(wake)
	written := make(chan struct{})
	go func() {
		ring.Append(text(end, 100))
		close(written)
	}()
	select {
	case <-written:
		t.Fatal("it dropped under a reader's eyes")
	case <-time.After(50 * time.Millisecond):
	}
	ring.Detach(wake)
	<-written
}

func TestATailWaitsForNobodyWhoPeeks(t *testing.T) {
	ring := NewRing(-1, true)
	ring.Append(text(0, RingSize+5))
	wake := make(chan struct{}, 1)
	from, held := ring.Peek(2, wake)
	if from != 5 || !bytes.Equal(held, text(5, RingSize)) {
		t.Fatalf("from %d, %d bytes", from, len(held))
	}
	written := make(chan struct{})
	go func() {
		ring.Append(text(RingSize+5, 2*RingSize))
		close(written)
	}()
	select {
	case <-written:
	case <-time.After(10 * time.Second):
		t.Fatal("it waits for one who peeks")
	}
	<-wake
	if base, end, unread := ring.Span(); base != end-RingSize || end != 3*RingSize+5 || unread != RingSize {
		t.Errorf("span %d %d %d", base, end, unread)
	}
	if from, held := ring.Peek(3*RingSize, wake); from != 3*RingSize || !bytes.Equal(held, text(from, 5)) {
		t.Errorf("from %d, %d bytes", from, len(held))
	}
	ring.Detach(wake)
	ring.Append(text(3*RingSize+5, 1))
	select {
	case <-wake:
		t.Error("woken after it left")
	default:
	}
}

func TestWhoPeeksTakesNothingFromAReader(t *testing.T) {
	ring := NewRing(-1, true)
	reader, peeker := make(chan struct{}, 1), make(chan struct{}, 1)
	ring.Attach(reader)
	ring.Append(text(0, RingSize))
	if from, held := ring.Peek(0, peeker); from != 0 || len(held) != RingSize {
		t.Errorf("from %d, %d bytes", from, len(held))
	}
	written := make(chan struct{})
	go func() {
		ring.Append(text(RingSize, 10))
		close(written)
	}()
	stalled(t, ring)
	ring.Detach(peeker)
	if now, _ := ring.Stalls(); !now || ring.Begin() != 0 {
		t.Error("the reader's output was dropped")
	}
	ring.Consume(10)
	<-written
}

func TestALimitTruncates(t *testing.T) {
	ring := NewRing(100, false)
	ring.Append(text(0, 60))
	if ring.Truncated() {
		t.Error("too early")
	}
	ring.Append(text(60, 60))
	ring.Append(text(120, 60))
	if _, end, _ := ring.Span(); end != 100 || !ring.Truncated() {
		t.Errorf("end %d", end)
	}
}

func TestAClosedRingTakesNoMoreThanItHolds(t *testing.T) {
	ring := NewRing(-1, false)
	ring.Append(text(0, 100))
	ring.Close()
	if len(ring.buf) != 100 {
		t.Errorf("%d bytes for 100", len(ring.buf))
	}
	p := make([]byte, 6000)
	if _, n, done := ring.Read(0, p); !done || !bytes.Equal(p[:n], text(0, 100)) {
		t.Errorf("%d bytes", n)
	}
	ring.Drop()
	if from, n, done := ring.Read(0, p); from != 100 || n != 0 || !done {
		t.Errorf("after drop: %d %d %v", from, n, done)
	}
}
