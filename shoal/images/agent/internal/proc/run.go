package proc

import (
	"time"

	"shoal/agent/internal/fault"
)

const (
	// quick is how long a run may take, for each that is under way, before its pipes are watched: most end sooner, and cost
	// the poller nothing. One that writes more than a pipe holds is held up for so long, once.
	quick   = 2 * time.Millisecond
	longest = 10 * quick
	// linger is how long a run waits for the end of its pipes once its leader has ended.
	linger = 100 * time.Millisecond
	// rejoin is how long the run of a lost client is held up for it before its output is dropped.
	rejoin = 30 * time.Second
)

// Run starts s, or joins the run that the same start made before. Its answer is complete when Finished is closed. The
// caller reads Out and Err from 0 and calls Leave when it is done.
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

// answerGone is what those get who come too late for a run's answer.
func answerGone(id string) error {
	return fault.New(fault.FailedPrecondition, "%s was run before, and its answer is no longer kept", id)
}

// Finished is closed when nothing more will be added to a run's answer.
func (p *Process) Finished() <-chan struct{} { return p.finished }

// Settle waits a moment for a run to end, as most do; only for the one who started it. If it has not ended, it is attended
// from now on, and Settle returns false.
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
	// Who still holds the pipes may go on writing: nobody listens, and nobody is held up.
	p.Out.Abandon()
	p.Err.Abandon()
}

// waitForEnd returns at the pipe's end; where others hold it still, once the ring has what the leader wrote and then a while
// went by in which the ring's reader held nobody up. The time alone says nothing: an agent that was kept from running, its
// sandbox having used up its CPU, finds it over before it has read a byte.
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

// conclude completes a run's answer.
func (p *Process) conclude() {
	p.release()
	p.table.changed(p, -1)
	close(p.finished)
	if p.attached.Load() == 0 {
		p.once.Do(func() { p.table.retire(p) })
	}
}

// Leave ends what Run began. cancelled: the client wants no answer; otherwise, where it has none yet, it may come back for it.
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

// giveUp lets a run that nobody waits for go on without its output.
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
