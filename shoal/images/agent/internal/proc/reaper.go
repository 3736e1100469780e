package proc

import (
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// Reaper waits for every child of this process, including those it inherits as the first process of the container.
// Nothing else waits for children, so no exit status is lost.
type Reaper struct {
	// forking is held during a fork. The kernel serializes its part of a fork anyway.
	forking sync.Mutex

	mu       sync.Mutex // guards the fields below
	children map[int]*Process
	// early holds the processes that ended during the current fork: perhaps its child, or orphans. It is nil outside a
	// fork, because a remembered pid may later belong to another process.
	early map[int]syscall.WaitStatus
}

// NewReaper makes a reaper and starts it.
func NewReaper() *Reaper {
	r := &Reaper{children: make(map[int]*Process)}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	go func() {
		for range ended {
			r.reap()
		}
	}()
	return r
}

func (r *Reaper) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if p := r.children[pid]; p != nil {
			delete(r.children, pid)
			p.ended(status)
		} else if r.early != nil {
			r.early[pid] = status
		}
	}
}

// fork calls start, which forks, and registers p as the child.
func (r *Reaper) fork(p *Process, start func() (int, error)) error {
	r.forking.Lock()
	defer r.forking.Unlock()
	r.mu.Lock()
	r.early = make(map[int]syscall.WaitStatus)
	r.mu.Unlock()
	pid, err := start()
	r.mu.Lock()
	defer r.mu.Unlock()
	status, gone := r.early[pid]
	r.early = nil
	if err != nil {
		return err
	}
	p.pid = pid
	if gone {
		p.ended(status)
	} else {
		r.children[pid] = p
	}
	return nil
}

// kill signals p's process group, unless p has ended: its pid may then belong to another process.
func (r *Reaper) kill(p *Process, sig syscall.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.pid == 0 || r.children[p.pid] != p {
		return nil
	}
	if err := syscall.Kill(-p.pid, sig); err != nil && err != syscall.ESRCH {
		return err
	}
	return nil
}

// withPid calls do with p's pid, unless p has ended.
func (r *Reaper) withPid(p *Process, do func(pid int)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.children[p.pid] == p {
		do(p.pid)
	}
}
