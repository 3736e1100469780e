package proc

import (
	"os"
	"strconv"
	"syscall"
	"time"
)

// childScore is the oom_score_adj of the processes that clients start: the kernel should kill them before the agent.
const childScore = 500

// descriptors collects the descriptors that a start opened, to close them later.
type descriptors []int

func (d *descriptors) pipe() (r, w int, err error) {
	var fds [2]int
	if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC); err != nil {
		return -1, -1, err
	}
	*d = append(*d, fds[0], fds[1])
	return fds[0], fds[1], nil
}

func (d *descriptors) close() {
	for _, fd := range *d {
		syscall.Close(fd)
	}
	*d = nil
}

// start starts s as p. If it fails, no process and no descriptor is left.
func (t *Table) start(p *Process, s *Spec) error {
	plan, err := t.resolve(s)
	if err != nil {
		return err
	}
	var ours, theirs descriptors // those that the agent keeps, and those for the child only
	defer func() { theirs.close() }()
	files, err := p.open(s, plan, t.null, &ours, &theirs)
	if err == nil {
		err = t.launch(p, s, plan, files)
	}
	if err != nil {
		ours.close()
		return plan.explain(err)
	}
	p.adopt(s, ours)
	return nil
}

// open returns the child's three standard descriptors. It adds the agent's ends to ours, in the order stdin (if any),
// stdout, stderr (if separate).
func (p *Process) open(s *Spec, plan *plan, null int, ours, theirs *descriptors) ([]uintptr, error) {
	if s.Pty != nil {
		master, peer, err := openTerminal(*s.Pty, plan.user)
		if err != nil {
			return nil, err
		}
		*ours = append(*ours, master)
		*theirs = append(*theirs, peer)
		return []uintptr{uintptr(peer), uintptr(peer), uintptr(peer)}, nil
	}
	in := null
	if s.Stdin {
		r, w, err := pipeInto(theirs, ours)
		if err != nil {
			return nil, err
		}
		in = r
		if err := syscall.SetNonblock(w, true); err != nil {
			return nil, err
		}
	}
	out, err := outputPipe(ours, theirs)
	if err != nil {
		return nil, err
	}
	failed := out
	if !s.MergeStderr {
		if failed, err = outputPipe(ours, theirs); err != nil {
			return nil, err
		}
	}
	return []uintptr{uintptr(in), uintptr(out), uintptr(failed)}, nil
}

// pipeInto makes a pipe. It adds the reading end to readers and the writing end to writers.
func pipeInto(readers, writers *descriptors) (r, w int, err error) {
	var both descriptors
	if r, w, err = both.pipe(); err == nil {
		*readers = append(*readers, r)
		*writers = append(*writers, w)
	}
	return r, w, err
}

func outputPipe(ours, theirs *descriptors) (int, error) {
	r, w, err := pipeInto(ours, theirs)
	if err != nil {
		return -1, err
	}
	return w, syscall.SetNonblock(r, true)
}

// launch forks and executes. It uses ForkExec because the kernel is fastest that way: the child shares the agent's
// memory until it executes.
func (t *Table) launch(p *Process, s *Spec, plan *plan, files []uintptr) error {
	attr := &syscall.ProcAttr{
		Dir:   plan.workdir,
		Env:   plan.env,
		Files: files,
		Sys:   &syscall.SysProcAttr{Setsid: true, Credential: plan.user, Setctty: s.Pty != nil, Ctty: 0},
	}
	path, argv := plan.path, plan.argv
	var report *shimReport
	if len(s.Limits) > 0 {
		var err error
		if report, err = newShimReport(); err != nil {
			return err
		}
		defer report.close()
		path, argv = t.executable, shimArgs(t.executable, path, argv, s.Limits)
		attr.Files = append(attr.Files, uintptr(report.w))
	}
	p.Started = time.Now()
	err := t.reaper.fork(p, func() (int, error) {
		return t.scheduling.restored(func() (int, error) { return syscall.ForkExec(path, argv, attr) })
	})
	if err == nil && t.adjustScore {
		t.reaper.withPid(p, writeScore)
	}
	if err != nil || report == nil {
		return err
	}
	return report.read()
}

func writeScore(pid int) {
	fd, err := syscall.Open("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", syscall.O_WRONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return // the process has already ended, or the engine forbids it
	}
	syscall.Write(fd, []byte(strconv.Itoa(childScore)))
	syscall.Close(fd)
}

// adopt takes over the agent's ends of the descriptors that open made.
func (p *Process) adopt(s *Spec, ours descriptors) {
	if s.Pty != nil {
		file := os.NewFile(uintptr(ours[0]), "terminal")
		p.pty = &terminal{file}
		p.Stdin = &Stdin{file: file, pty: true}
		p.pipes = []*pipe{{fd: ours[0], ring: p.Out, file: file}}
		p.Err.Close()
		return
	}
	if s.Stdin {
		p.Stdin = &Stdin{file: os.NewFile(uintptr(ours[0]), "stdin")}
		ours = ours[1:]
	}
	p.pipes = append(p.pipes, newPipe(ours[0], p.Out))
	if len(ours) > 1 {
		p.pipes = append(p.pipes, newPipe(ours[1], p.Err))
	} else {
		p.Err.Close()
	}
}
