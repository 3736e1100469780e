package proc

import (
	"time"

	"shoal/agent/internal/fault"
)

const (
	// quick is how long Settle waits for a run to end, times the number of runs that wait there, before the run's pipes
	// are watched. Most runs end sooner and so never use the poller. A run that writes more than a pipe holds is
	// blocked once for that time.
	quick   = 2 * time.Millisecond
	longest = 10 * quick
	// linger is how long a run waits for the end of its pipes once its leader has ended.
	linger = 100 * time.Millisecond
	// rejoin is how long a run keeps its output for a client that lost its connection.
	rejoin = 30 * time.Second
)

// Run starts s, or joins the run that an earlier call with the same id started. Its answer is complete when Finished is
// closed. The caller reads Out and Err from offset 0 and calls Leave when it is done.
func (t *Table) Run(s *Spec) (p *Process, started bool, err error) {
	p, started, err = t.begin(s, true)
	if err != nil || started {
		return p, started, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.gone || t.procs[s.ID] != p {
		return nil, false, answerGone(s.ID)
	}
	p.attached.Add(1)
	return p, false, nil
}

// answerGone is the error for a client that comes too late for a run's answer.
func answerGone(id string) error {
	return fault.New(fault.FailedPrecondition, "%s was run before, and its answer is no longer kept", id)
}

// Finished returns a channel that is closed when a run's answer is complete.
func (p *Process) Finished() <-chan struct{} { return p.finished }

// Settle waits a moment for a run to end, as most do, and reports whether it did. If not, a goroutine attends to the
// run from then on. Only the caller that started the run may call Settle.
func (p *Process) Settle() bool {
	under := time.Duration(p.table.settling.Add(1))
	defer p.table.settling.Add(-1)
	timer := time.NewTimer(min(under*quick, longest))
	select {
	case <-p.exited:
		timer.Stop()
		atEnd := true
		for _, pipe := range p.pipes {
			atEnd = pipe.drain() && atEnd
		}
		if atEnd {
			p.conclude()
			return true
		}
	case <-timer.C:
	}
	for _, pipe := range p.pipes {
		pipe.start()
	}
	go p.attendRun()
	return false
}

func (p *Process) attendRun() {
	<-p.exited
	for _, pipe := range p.pipes {
		p.waitForEnd(pipe)
	}
	p.conclude()
	// Processes that still hold the pipes may go on writing: their output is dropped, and they never block.
	p.Out.Abandon()
	p.Err.Abandon()
}

// waitForEnd waits for the end of the pipe. If other processes still hold the pipe, it waits until the ring has all
// that the leader wrote, and then until the linger time has passed without a full ring. Time alone proves nothing: if
// the sandbox has used up its CPU quota, the agent may not have run at all, and the time may be over before it reads a
// byte.
func (p *Process) waitForEnd(pipe *pipe) {
	written := pipe.written()
	timer := time.NewTimer(linger)
	defer timer.Stop()
	_, before := pipe.ring.Stalls()
	for {
		select {
		case <-pipe.done:
			return
		case <-timer.C:
		}
		now, count := pipe.ring.Stalls()
		if !now && count == before && pipe.moved.Load() >= written {
			return
		}
		before = count
		timer.Reset(linger)
	}
}

// conclude marks a run's answer as complete.
func (p *Process) conclude() {
	p.release()
	p.table.changed(p, -1)
	close(p.finished)
	if p.attached.Load() == 0 {
		p.once.Do(func() { p.table.retire(p) })
	}
}

// Leave ends a call of Run. cancelled means that the client no longer wants the answer. Otherwise, if the answer is not
// complete, the client may come back for it.
func (p *Process) Leave(cancelled bool) {
	if p.attached.Add(-1) > 0 {
		return
	}
	select {
	case <-p.finished:
		p.once.Do(func() { p.table.retire(p) })
		return
	default:
	}
	if cancelled {
		p.giveUp()
		return
	}
	time.AfterFunc(rejoin, p.giveUp)
}

// giveUp drops the output of a run that no client waits for. The run itself goes on.
func (p *Process) giveUp() {
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	select {
	case <-p.finished:
		return
	default:
	}
	if p.attached.Load() > 0 {
		return
	}
	p.gone = true
	p.Out.Abandon()
	p.Err.Abandon()
}
