package stream

import "io"

const (
	pieceSize = 256 << 10
	// pieces is how many wait at most: enough that reader and writer seldom wait for each other.
	pieces = 8
)

// Ahead reads from another reader before it is asked, in a goroutine of its own.
type Ahead struct {
	ready   chan piece
	free    chan []byte
	closing chan struct{}
	current piece
	at      int
}

type piece struct {
	data []byte
	err  error // after the data
}

// ReadAhead starts reading. Close must be called; until then nobody else uses the reader.
func ReadAhead(in io.Reader) *Ahead {
	a := &Ahead{ready: make(chan piece, pieces), free: make(chan []byte, pieces), closing: make(chan struct{})}
	for range pieces {
		a.free <- make([]byte, pieceSize)
	}
	go a.fill(in)
	return a
}

func (a *Ahead) fill(in io.Reader) {
	defer close(a.ready)
	for {
		var buffer []byte
		select {
		case buffer = <-a.free:
		case <-a.closing:
			return
		}
		n, err := fillUp(in, buffer[:pieceSize])
		a.ready <- piece{buffer[:n], err} // there is room: no more pieces are about than it holds
		if err != nil {
			return
		}
	}
}

// fillUp is io.ReadFull with the reader's own error.
func fillUp(in io.Reader, buffer []byte) (n int, err error) {
	for n < len(buffer) && err == nil {
		var some int
		some, err = in.Read(buffer[n:])
		n += some
	}
	return n, err
}

func (a *Ahead) Read(buffer []byte) (int, error) {
	for a.at == len(a.current.data) {
		if a.current.err != nil {
			return 0, a.current.err
		}
		if a.current.data != nil {
			a.free <- a.current.data
		}
		a.current, a.at = <-a.ready, 0
	}
	n := copy(buffer, a.current.data[a.at:])
	a.at += n
	return n, nil
}

// Close waits for the read that is under way, then the reader is free.
func (a *Ahead) Close() {
	close(a.closing)
	for range a.ready { //nolint:revive // what was read for nobody
	}
}
