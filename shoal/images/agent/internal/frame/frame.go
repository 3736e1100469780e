// Package frame is the codec of the agent's protocol. Every length is bounded.
//
//	u32 length (of all that follows) | u8 kind | u32 stream | payload
//
// PROTOCOL.md describes the protocol.
package frame

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"sync"
)

// Kind says what a frame carries.
type Kind uint8

// The kinds of the protocol, in the order of its table.
const (
	Hello Kind = iota
	Open
	Reply
	Event
	Data
	End
	ErrData
	Credit
	Cancel
	kinds
)

const (
	// HeaderSize is the size of a frame before its payload.
	HeaderSize = 9
	// MaxPayload bounds the payload of one frame, but for a request.
	MaxPayload = 1 << 20
	// MaxRequest bounds the payload of an OPEN on an admitted connection: arguments and variables up to the kernel's
	// limit, 2 MiB, even if JSON needs six bytes for each of theirs.
	MaxRequest = 16 << 20
	// MaxHello bounds the payload of a HELLO.
	MaxHello = 8 << 10
	// InitialCredit is how many payload bytes each direction of a stream may carry before any CREDIT.
	InitialCredit = 1 << 20

	bufferSize = 8 << 10
	afterLen   = HeaderSize - 4
)

// ErrMalformed means that a frame breaks the protocol. The connection must end.
var ErrMalformed = errors.New("malformed frame")

// Frame is one decoded frame. Its payload is valid until the next call of Decoder.Next, unless it is Owned.
type Frame struct {
	Kind    Kind
	Stream  uint32
	Payload []byte
	// Owned means that the caller owns the payload, and may give it back with Recycle.
	Owned bool
}

// Append appends a whole frame to b. The payload must not exceed MaxPayload.
func Append(b []byte, kind Kind, stream uint32, payload []byte) []byte {
	return append(AppendHeader(b, kind, stream, len(payload)), payload...)
}

// AppendHeader appends the header of a frame. Its payload of n bytes must follow.
func AppendHeader(b []byte, kind Kind, stream uint32, n int) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(n+afterLen))
	b = append(b, byte(kind))
	return binary.BigEndian.AppendUint32(b, stream)
}

// PutHeader writes the header of a frame with a payload of n bytes into the first HeaderSize bytes of b.
func PutHeader(b []byte, kind Kind, stream uint32, n int) {
	binary.BigEndian.PutUint32(b, uint32(n+afterLen))
	b[4] = byte(kind)
	binary.BigEndian.PutUint32(b[5:], stream)
}

// AppendCredit appends a CREDIT frame that grants n bytes.
func AppendCredit(b []byte, stream uint32, n uint32) []byte {
	return binary.BigEndian.AppendUint32(AppendHeader(b, Credit, stream, 4), n)
}

// ParseCredit reads the payload of a CREDIT frame.
func ParseCredit(payload []byte) (uint32, error) {
	if len(payload) != 4 {
		return 0, ErrMalformed
	}
	return binary.BigEndian.Uint32(payload), nil
}

// large holds payload buffers of the maximum size, for frames that do not fit into a decoder's own buffer.
var large = sync.Pool{New: func() any { b := make([]byte, MaxPayload); return &b }}

// medium holds payload buffers of the usual size of bulk frames, so that a queue of those wastes no memory.
var medium = sync.Pool{New: func() any { b := make([]byte, mediumSize); return &b }}

const mediumSize = 256 << 10

func takeBuffer(n int) []byte {
	if n <= mediumSize {
		return (*medium.Get().(*[]byte))[:n]
	}
	return (*large.Get().(*[]byte))[:n]
}

// Recycle gives the payload of an Owned frame back. The caller must not use it afterwards.
func Recycle(payload []byte) {
	payload = payload[:cap(payload)]
	switch cap(payload) {
	case mediumSize:
		medium.Put(&payload)
	case MaxPayload:
		large.Put(&payload)
	}
}

// Decoder reads frames. It reads ahead, so nothing else may read from the same source.
type Decoder struct {
	// Admitted says that the client has been admitted, so that its requests may have MaxRequest bytes.
	Admitted   bool
	r          io.Reader
	buf        [bufferSize]byte
	start, end int
}

// NewDecoder makes a decoder that reads from r.
func NewDecoder(r io.Reader) *Decoder { return &Decoder{r: r} }

// Next returns the next frame. At the end of the source it returns io.EOF between frames, and io.ErrUnexpectedEOF
// inside one. It returns ErrMalformed for a frame that breaks the protocol.
func (d *Decoder) Next() (Frame, error) {
	if err := d.fill(HeaderSize); err != nil {
		return Frame{}, err
	}
	head := d.buf[d.start:]
	length := binary.BigEndian.Uint32(head)
	f := Frame{Kind: Kind(head[4]), Stream: binary.BigEndian.Uint32(head[5:])}
	most := uint32(MaxPayload)
	if f.Kind == Open && d.Admitted {
		most = MaxRequest
	}
	if length < afterLen || length > most+afterLen || f.Kind >= kinds {
		return Frame{}, ErrMalformed
	}
	n := int(length) - afterLen
	if !plausible(f.Kind, f.Stream, n) {
		return Frame{}, ErrMalformed
	}
	if n > bufferSize-HeaderSize {
		return d.readLarge(f, n)
	}
	if err := d.fill(HeaderSize + n); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return Frame{}, err
	}
	f.Payload = d.buf[d.start+HeaderSize : d.start+HeaderSize+n]
	d.start += HeaderSize + n
	return f, nil
}

// plausible reports whether a header can belong to a valid frame. It is checked before waiting for the payload.
func plausible(kind Kind, stream uint32, n int) bool {
	switch kind {
	case Hello:
		return stream == 0 && n <= MaxHello
	case End, Cancel:
		return n == 0 && stream != 0
	case Credit:
		return n == 4 && stream != 0
	default:
		return stream != 0
	}
}

func (d *Decoder) readLarge(f Frame, n int) (Frame, error) {
	if n > MaxPayload {
		return d.readRequest(f, n)
	}
	payload := takeBuffer(n)
	d.start += HeaderSize
	have := copy(payload, d.buf[d.start:d.end])
	d.start += have
	if _, err := io.ReadFull(d.r, payload[have:]); err != nil {
		Recycle(payload)
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return Frame{}, err
	}
	f.Payload, f.Owned = payload, true
	return f, nil
}

// readRequest reads a request of more than MaxPayload bytes. Its memory grows with what has arrived: a length alone
// costs a client nothing.
func (d *Decoder) readRequest(f Frame, n int) (Frame, error) {
	d.start += HeaderSize
	var payload bytes.Buffer
	payload.Write(d.buf[d.start:d.end])
	d.start = d.end
	if _, err := io.CopyN(&payload, d.r, int64(n-payload.Len())); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return Frame{}, err
	}
	f.Payload, f.Owned = payload.Bytes(), true
	return f, nil
}

// fill reads until n bytes, at most bufferSize, are buffered from start on.
func (d *Decoder) fill(n int) error {
	if d.start == d.end {
		d.start, d.end = 0, 0
	} else if d.start+n > bufferSize {
		d.end = copy(d.buf[:], d.buf[d.start:d.end])
		d.start = 0
	}
	for stalls := 0; d.end-d.start < n; {
		m, err := d.r.Read(d.buf[d.end:])
		d.end += m
		if m > 0 {
			continue
		}
		if err == nil {
			if stalls++; stalls > 100 {
				return io.ErrNoProgress
			}
			continue
		}
		if err == io.EOF && d.end > d.start {
			return io.ErrUnexpectedEOF
		}
		return err
	}
	return nil
}

// Buffered returns the bytes that were read ahead and not yet decoded. They are valid until the next call of Next.
func (d *Decoder) Buffered() []byte { return d.buf[d.start:d.end] }
