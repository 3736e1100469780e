package proc

import (
	"os"
	"syscall"
	"testing"
	"time"
)

// brokenOff makes a pipe that another process keeps open and that still holds what the leader wrote before it ended.
func brokenOff(t *testing.T, written string) (*pipe, *os.File) {
	t.Helper()
	var fds [2]int
	if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	p := newPipe(fds[0], NewRing(-1, false))
	p.file = os.NewFile(uintptr(fds[0]), "output")
	other := os.NewFile(uintptr(fds[1]), "other")
	if _, err := other.WriteString(written); err != nil {
		t.Fatal(err)
	}
	p.done = make(chan struct{})
	return p, other
}

func TestWhatALeaderWroteIsWaitedForHoweverLateItIsRead(t *testing.T) {
	pipe, other := brokenOff(t, "last words")
	returned := make(chan struct{})
	go func() {
		(&Process{}).waitForEnd(pipe)
		close(returned)
	}()
	// This is the state after a pause of the whole agent: the time is over, and pump has not run yet.
	select {
	case <-returned:
		t.Fatal("the answer was complete before a byte of it was read")
	case <-time.After(5 * linger):
	}
	go pipe.pump(pipe.file)
	<-returned
	if _, _, unread := pipe.ring.Span(); unread != int64(len("last words")) {
		t.Errorf("the ring has %d bytes", unread)
	}
	other.Close()
	<-pipe.done
}

func TestWhoeverWritesOnAfterTheLeaderIsNotWaitedFor(t *testing.T) {
	pipe, other := brokenOff(t, "last words")
	go pipe.pump(pipe.file)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				other.Write([]byte("and more"))
				if _, end, _ := pipe.ring.Span(); end > 0 {
					pipe.ring.Consume(end) // its reader keeps up
				}
			}
		}
	}()
	(&Process{}).waitForEnd(pipe)
	close(stop)
	<-stopped
	other.Close()
	<-pipe.done
}
