// Package proc starts processes, keeps their output, and ends them.
package proc

import (
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Process is one command that a client started. The table keeps it for a while after it ended.
type Process struct {
	ID      string
	Started time.Time
	// Out and Err hold its output. Err stays empty with a terminal or merged output.
	Out, Err *Ring
	// Stdin is nil if the process was started without standard input.
	Stdin *Stdin

	table    *Table
	run      bool
	argv     []string // shortened, as ps shows it
	pid      int
	ready    chan struct{} // closed when the start succeeded or failed
	failure  error
	exited   chan struct{} // closed when the leader ended
	exit     int
	took     time.Duration
	endedAt  time.Time
	timedOut atomic.Bool
	timer    *time.Timer
	pipes    []*pipe
	pty      *terminal
	finished chan struct{} // run only: closed when its answer is complete
	once     sync.Once
	attached atomic.Int32 // run only: how many clients wait for its answer
	gone     bool         // run only: its answer is no longer complete; guarded by the table
}

// Pid returns its process id in the sandbox.
func (p *Process) Pid() int { return p.pid }

// Exited returns a channel that is closed when the leader has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Exit tells how it ended: its exit code or the negated signal, whether it timed out, and how long it ran.
// It must not be called before Exited is closed.
func (p *Process) Exit() (code int, timedOut bool, took time.Duration) {
	return p.exit, p.timedOut.Load(), p.took
}

// Running reports whether the leader still runs.
func (p *Process) Running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// ended records the exit status. The reaper calls it once; it must not block.
func (p *Process) ended(status syscall.WaitStatus) {
	p.took = time.Since(p.Started)
	if status.Signaled() {
		p.exit = -int(status.Signal())
	} else {
		p.exit = status.ExitStatus()
	}
	close(p.exited)
}

// watchTimeout kills the whole process tree after the timeout; 0 means no timeout.
func (p *Process) watchTimeout(timeout time.Duration) {
	if timeout <= 0 {
		return
	}
	p.timer = time.AfterFunc(timeout, func() {
		if !p.Running() {
			return
		}
		p.timedOut.Store(true)
		p.table.killTree(p)
	})
}

// Signal signals the process group, or with tree every descendant. It does nothing if the leader has ended.
func (p *Process) Signal(sig syscall.Signal, tree bool) error {
	if !p.Running() {
		return nil
	}
	if tree && sig == syscall.SIGKILL {
		p.table.killTree(p)
		return nil
	}
	if tree {
		return p.table.signalTree(p, sig)
	}
	return p.table.reaper.kill(p, sig)
}

// Resize sets the size of its terminal, and reports whether it has one.
func (p *Process) Resize(rows, cols uint16) (bool, error) {
	if p.pty == nil {
		return false, nil
	}
	return true, p.pty.resize(rows, cols)
}
