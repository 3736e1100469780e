package stream

import (
	"bytes"
	"errors"
	"io"
	"math/rand"
	"testing"
	"testing/iotest"
)

func TestWhatIsReadAheadIsTheSameAndSoIsItsError(t *testing.T) {
	data := make([]byte, pieceSize*(pieces+3)+17)
	rand.New(rand.NewSource(1)).Read(data)
	broken := errors.New("broken")
	for _, each := range []struct {
		in   io.Reader
		want error
	}{
		{bytes.NewReader(data), nil},
		{iotest.HalfReader(bytes.NewReader(data)), nil},
		{iotest.DataErrReader(bytes.NewReader(data)), nil},
		{io.MultiReader(bytes.NewReader(data), iotest.ErrReader(broken)), broken},
	} {
		ahead := ReadAhead(each.in)
		found, err := io.ReadAll(ahead)
		ahead.Close()
		if !errors.Is(err, each.want) || !bytes.Equal(found, data) {
			t.Errorf("%d of %d bytes came, then %v instead of %v", len(found), len(data), err, each.want)
		}
	}
}

func TestReadingAheadEndsWhenNobodyWantsTheRest(t *testing.T) {
	in := &endless{}
	ahead := ReadAhead(in)
	if _, err := io.CopyN(io.Discard, ahead, pieceSize*2); err != nil {
		t.Fatal(err)
	}
	ahead.Close()
	before := in.reads
	if _, err := in.Read(nil); err != nil || in.reads != before+1 {
		t.Error("it is still read")
	}
}

type endless struct{ reads int }

func (e *endless) Read(buffer []byte) (int, error) {
	e.reads++
	return len(buffer), nil
}
