package proc

import (
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// Reaper waits for every child of this process, those it inherits as first process of the container included. It is
// the only place that does, so that no exit status can go astray.
type Reaper struct {
	// forking is held during a fork. The kernel's part of it takes turns anyway.
	forking sync.Mutex

	mu       sync.Mutex // guards what follows
	children map[int]*Process
	// early holds what ended during the fork that is under way: its child, perhaps, or orphans. It is nil without one: a
	// number must not be remembered until it is another's.
	early map[int]syscall.WaitStatus
}

// NewReaper starts reaping.
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

// fork runs start, which forks, and registers p as the child it made.
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

// kill signals p's process group, unless p has ended: its number may then be another's.
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

// withPid calls do with p's number, unless p has ended.
func (r *Reaper) withPid(p *Process, do func(pid int)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.children[p.pid] == p {
		do(p.pid)
	}
}
