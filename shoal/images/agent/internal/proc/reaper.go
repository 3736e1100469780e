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
	mu       sync.Mutex
	children map[int]*Process
	forking  int
	// early holds what ended before its fork was registered. It is emptied when no fork is under way: what is then
	// left are orphans of others.
	early map[int]syscall.WaitStatus
}

// NewReaper starts reaping.
func NewReaper() *Reaper {
	r := &Reaper{children: make(map[int]*Process), early: make(map[int]syscall.WaitStatus)}
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
		} else if r.forking > 0 {
			r.early[pid] = status
		}
	}
}

// fork runs start, which forks, and registers p as the child it made.
func (r *Reaper) fork(p *Process, start func() (int, error)) error {
	r.mu.Lock()
	r.forking++
	r.mu.Unlock()
	pid, err := start()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forking--
	status, gone := r.early[pid]
	if r.forking == 0 {
		clear(r.early)
	} else {
		delete(r.early, pid)
	}
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
