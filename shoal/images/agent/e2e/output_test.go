package e2e

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"shoal/agent/internal/frame"
)

func TestAProcessWaitsForItsReader(t *testing.T) {
	c := start(t).dial()
	id := c.exec(nil, sh("head -c 8000000 /dev/zero; echo end >&2")...)
	request, _ := json.Marshal(object{"op": "output", "id": id, "fd": 1, "offset": 0})
	held := c.openRaw(request, nil, true)
	read := 0
	for read < 1<<20 {
		f, _ := held.next()
		read += len(f.Payload)
	}
	wait := c.open(object{"op": "wait", "id": id}, nil)
	select {
	case <-wait.frames:
		t.Fatal("it did not wait")
	case <-time.After(300 * time.Millisecond):
	}
	held.credit(1 << 20)
	for read < 2<<20 {
		f, _ := held.next()
		read += len(f.Payload)
	}
	held.cancel()
	rest := c.must(object{"op": "output", "id": id, "fd": 1, "offset": read})
	if read+len(rest.out) != 8_000_000 || rest.ok["offset"] != float64(8_000_000) || len(rest.events) != 0 {
		t.Errorf("got %d after %d, %v, %v", len(rest.out), read, rest.ok, rest.events)
	}
	wait.result().ended(t, 0)
	if r := c.must(object{"op": "output", "id": id, "fd": 2, "offset": 0}); string(r.out) != "end\n" {
		t.Errorf("got %q", r.out)
	}
	c.do(object{"op": "output", "id": id, "fd": 1, "offset": 8_000_001}).want(t, "invalid_request", "offset")
	c.do(object{"op": "output", "id": id, "fd": 3, "offset": 0}).want(t, "invalid_request", "fd")
}

func TestATailDropsTheOldestWhenNobodyReads(t *testing.T) {
	c := start(t).dial()
	id := c.exec(object{"tail": true}, sh("head -c 4000000 /dev/zero; echo end")...)
	c.must(object{"op": "wait", "id": id}).ended(t, 0)
	r := c.must(object{"op": "output", "id": id, "fd": 1, "offset": 0})
	if len(r.events) != 1 || !bytes.HasSuffix(r.out, []byte("end\n")) || r.ok["offset"] != float64(4_000_004) {
		t.Fatalf("got %d bytes, %v, %v", len(r.out), r.events, r.ok)
	}
	gap := r.events[0]["gap"].([]any)
	if gap[0] != float64(0) || int(gap[1].(float64))+len(r.out) != 4_000_004 {
		t.Errorf("gap %v and %d bytes", gap, len(r.out))
	}
}

// written waits until a process has written so much to its stdout.
func (c *client) written(id string, n int) {
	c.t.Helper()
	eventually(c.t, "it has written all", func() bool {
		look := c.open(object{"op": "output", "id": id, "fd": 1, "offset": 0, "tell": true, "peek": true}, nil)
		defer look.cancel()
		return look.event()["held"].([]any)[1] == float64(n)
	})
}

func TestWhoPeeksHoldsNobodyUp(t *testing.T) {
	c := start(t).dial()
	id := c.exec(object{"tail": true, "stdin": true}, sh("head -c 2000000 /dev/zero; echo ready >&2; read line; head -c 6000000 /dev/zero; echo end")...)
	c.open(object{"op": "output", "id": id, "fd": 2, "offset": 0}, nil).next()
	c.written(id, 2_000_000)
	request, _ := json.Marshal(object{"op": "output", "id": id, "fd": 1, "offset": 10, "tell": true, "peek": true})
	slow := c.openRaw(request, nil, true)
	held := slow.event()["held"].([]any)
	begin := int(held[0].(float64))
	if begin < 2_000_000-1<<20 || held[1] != float64(2_000_000) {
		t.Fatalf("held %v", held)
	}
	// It gives no credit, and the process ends nevertheless.
	in := c.open(object{"op": "stdin", "id": id, "offset": 0}, []byte("go\n"))
	c.must(object{"op": "wait", "id": id}).ended(t, 0)
	in.cancel()
	c.written(id, 8_000_004)
	seen := begin
	for seen < begin+1<<20 { // its first credit
		f, _ := slow.next()
		if f.Kind != frame.Data {
			t.Fatalf("got kind %d after %d", f.Kind, seen)
		}
		seen += len(f.Payload)
	}
	if seen < 2_000_000 {
		t.Fatalf("not all that was held came: %d", seen)
	}
	slow.credit(2 << 20)
	rest := slow.result()
	if len(rest.events) != 1 || !bytes.HasSuffix(rest.out, []byte("end\n")) || rest.ok["offset"] != float64(8_000_004) {
		t.Fatalf("got %d bytes, %v, %v", len(rest.out), rest.events, rest.ok)
	}
	gap := rest.events[0]["gap"].([]any)
	if gap[0] != float64(seen) || int(gap[1].(float64))+len(rest.out) != 8_000_004 {
		t.Errorf("gap %v and %d bytes after %d", gap, len(rest.out), seen)
	}
	all := c.must(object{"op": "output", "id": id, "fd": 1, "offset": 8_000_000, "peek": true})
	if string(all.out) != "end\n" || len(all.events) != 0 {
		t.Errorf("got %q, %v", all.out, all.events)
	}
}

func TestWhatWasHeldComesWholeHoweverFastTheProcessIs(t *testing.T) {
	c := start(t).dial()
	id := c.exec(object{"tail": true}, "yes")
	for range 20 {
		look := c.open(object{"op": "output", "id": id, "fd": 1, "offset": 0, "tell": true, "peek": true}, nil)
		held := look.event()["held"].([]any)
		for left := int(held[1].(float64) - held[0].(float64)); left > 0; {
			f, _ := look.next()
			if f.Kind != frame.Data {
				t.Fatalf("got %s with %d left", f.Payload, left)
			}
			left -= len(f.Payload)
		}
		look.cancel()
	}
	c.must(object{"op": "signal", "id": id, "signal": 9, "tree": false})
}
