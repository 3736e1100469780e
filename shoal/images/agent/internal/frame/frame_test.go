package frame

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

func TestFramesComeBackAsTheyWere(t *testing.T) {
	var wire []byte
	sizes := []int{0, 1, bufferSize - HeaderSize, bufferSize - HeaderSize + 1, mediumSize, mediumSize + 1, MaxPayload}
	for i, size := range sizes {
		wire = Append(wire, Data, uint32(i+1), bytes.Repeat([]byte{byte(i)}, size))
	}
	for name, source := range map[string]io.Reader{
		"whole": bytes.NewReader(wire), "halves": iotest.HalfReader(bytes.NewReader(wire)),
		"bytes": iotest.OneByteReader(bytes.NewReader(wire)), "data with its end": iotest.DataErrReader(bytes.NewReader(wire)),
	} {
		decoder := NewDecoder(source)
		for i, size := range sizes {
			f, err := decoder.Next()
			if err != nil || f.Kind != Data || f.Stream != uint32(i+1) || len(f.Payload) != size {
				t.Fatalf("%s: frame %d: %v, kind %d, stream %d, %d bytes", name, i, err, f.Kind, f.Stream, len(f.Payload))
			}
			if !bytes.Equal(f.Payload, bytes.Repeat([]byte{byte(i)}, size)) {
				t.Fatalf("%s: frame %d holds something else", name, i)
			}
			if f.Owned {
				Recycle(f.Payload)
			}
		}
		if _, err := decoder.Next(); err != io.EOF {
			t.Errorf("%s: at the end: %v", name, err)
		}
	}
}

func TestMalformedFramesAreRefusedByTheirHeader(t *testing.T) {
	header := func(length uint32, kind Kind, stream uint32) []byte {
		b := binary.BigEndian.AppendUint32(nil, length)
		return binary.BigEndian.AppendUint32(append(b, byte(kind)), stream)
	}
	for name, wire := range map[string][]byte{
		"too short":           header(4, Data, 1),
		"too long":            header(MaxPayload+6, Data, 1),
		"absurd":              header(1<<32-1, Data, 1),
		"unknown kind":        header(5, kinds, 1),
		"stream 0":            header(5, Data, 0),
		"HELLO on a stream":   header(7, Hello, 1),
		"long HELLO":          header(MaxHello+6, Hello, 0),
		"END with a payload":  header(6, End, 1),
		"short CREDIT":        header(8, Credit, 1),
		"CANCEL with payload": header(6, Cancel, 1),
	} {
		// Nothing follows, so the decoder must not wait for more.
		if _, err := NewDecoder(bytes.NewReader(wire)).Next(); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOnlyRequestsOfTheAdmittedAreLarge(t *testing.T) {
	request := bytes.Repeat([]byte("x"), MaxRequest)
	wire := Append(Append(nil, Open, 1, request), End, 1, nil)
	decoder := NewDecoder(bytes.NewReader(wire))
	decoder.Admitted = true
	if f, err := decoder.Next(); err != nil || !bytes.Equal(f.Payload, request) {
		t.Errorf("%d bytes, %v", len(f.Payload), err)
	}
	if f, err := decoder.Next(); err != nil || f.Kind != End {
		t.Errorf("behind it: %v, %v", f.Kind, err)
	}
	for _, refused := range []struct {
		admitted bool
		kind     Kind
		size     int
	}{{false, Open, MaxPayload + 1}, {true, Data, MaxPayload + 1}, {true, Open, MaxRequest + 1}} {
		decoder := NewDecoder(bytes.NewReader(AppendHeader(nil, refused.kind, 1, refused.size)))
		decoder.Admitted = refused.admitted
		if _, err := decoder.Next(); !errors.Is(err, ErrMalformed) {
			t.Errorf("%v: %v", refused, err)
		}
	}
}

func TestACutFrameIsNotAnEnd(t *testing.T) {
	for _, size := range []int{0, 3, 100, bufferSize} {
		whole := Append(nil, Data, 1, make([]byte, size))
		for _, cut := range []int{1, HeaderSize - 1, len(whole) - 1} {
			if _, err := NewDecoder(bytes.NewReader(whole[:cut])).Next(); err != io.ErrUnexpectedEOF {
				t.Errorf("%d of %d bytes: %v", cut, len(whole), err)
			}
		}
	}
}

func TestWhatWasReadAheadIsToldOnce(t *testing.T) {
	wire := Append(nil, Hello, 0, []byte("{}"))
	behind := Append(nil, Open, 1, []byte("next"))
	decoder := NewDecoder(bytes.NewReader(append(wire, behind...)))
	if _, err := decoder.Next(); err != nil || !bytes.Equal(decoder.Buffered(), behind) {
		t.Errorf("%v, %q", err, decoder.Buffered())
	}
}

func FuzzDecoder(f *testing.F) {
	f.Add(Append(Append(nil, Hello, 0, []byte("{}")), Data, 7, make([]byte, 9000)), 3)
	f.Add(AppendCredit(nil, 1, 5), 1)
	f.Add([]byte{0, 0, 0, 5, 4, 0, 0, 0, 1}, 100)
	f.Fuzz(func(t *testing.T, wire []byte, step int) {
		decoder := NewDecoder(&stepReader{wire, 1 + max(0, step)%9000})
		var again []byte
		for {
			frame, err := decoder.Next()
			if err != nil {
				break
			}
			if len(frame.Payload) > MaxPayload || frame.Kind >= kinds {
				t.Fatalf("kind %d, %d bytes", frame.Kind, len(frame.Payload))
			}
			again = Append(again, frame.Kind, frame.Stream, frame.Payload)
			if frame.Owned {
				Recycle(frame.Payload)
			}
		}
		if !bytes.HasPrefix(wire, again) {
			t.Fatal("it made up a frame")
		}
	})
}

// stepReader gives at most so many bytes at a time.
type stepReader struct {
	rest []byte
	step int
}

func (r *stepReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.rest[:min(r.step, len(r.rest))])
	r.rest = r.rest[n:]
	return n, nil
}
