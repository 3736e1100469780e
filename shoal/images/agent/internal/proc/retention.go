package proc

import (
	"hash/maphash"
	"runtime/debug"
	"slices"
	"time"
)

const (
	maxEnded      = 256
	maxAnswers    = 256
	answerSize    = 64 << 10
	answerAge     = 30 * time.Second
	unreadAge     = 60 * time.Second
	maxUnread     = 8 << 20
	maxForgotten  = 8192
	janitorPeriod = 15 * time.Second
	maxShownArgv  = 1024
)

// retention holds the processes that have ended and are still kept. The table's mutex guards it.
type retention struct {
	ended   []*Process // started by exec, oldest first
	answers []*Process // started by run, oldest first
	janitor *time.Timer
	armed   bool

	forgotten map[uint64]struct{} // hashes of the ids of forgotten processes, so that none of them starts again
	order     []uint64
	next      int
}

func (k *retention) seen(hash uint64) bool {
	_, dead := k.forgotten[hash]
	return dead
}

func (k *retention) remember(hash uint64) {
	if k.forgotten == nil {
		k.forgotten = make(map[uint64]struct{})
	}
	if len(k.order) < maxForgotten {
		k.order = append(k.order, hash)
	} else {
		delete(k.forgotten, k.order[k.next])
		k.order[k.next] = hash
		k.next = (k.next + 1) % maxForgotten
	}
	k.forgotten[hash] = struct{}{}
}

// retire adds an ended process to those that are kept, and forgets the oldest if there are too many.
func (t *Table) retire(p *Process) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p.endedAt = time.Now()
	if !p.run {
		t.kept.ended = append(t.kept.ended, p)
		if len(t.kept.ended) > maxEnded {
			t.forget(t.kept.ended[0])
			t.kept.ended = t.kept.ended[1:]
		}
		return
	}
	p.argv = nil
	if _, out, _ := p.Out.Span(); !p.gone {
		_, failed, _ := p.Err.Span()
		p.gone = out+failed > answerSize
	}
	if p.gone {
		p.Out.Drop()
		p.Err.Drop()
	}
	t.kept.answers = append(t.kept.answers, p)
	if len(t.kept.answers) > maxAnswers {
		t.forget(t.kept.answers[0])
		t.kept.answers = t.kept.answers[1:]
	}
	t.kept.armLocked(t)
}

func (t *Table) forget(p *Process) {
	delete(t.procs, p.ID)
	t.kept.remember(maphash.String(t.seed, p.ID))
	p.Out.Drop()
	p.Err.Drop()
}

func (k *retention) arm(t *Table) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k.armLocked(t)
}

func (k *retention) armLocked(t *Table) {
	if k.armed {
		return
	}
	k.armed = true
	if k.janitor == nil {
		k.janitor = time.AfterFunc(janitorPeriod, t.sweep)
		return
	}
	k.janitor.Reset(janitorPeriod)
}

// sweep drops what is too old. It runs again as long as something remains that will become too old.
func (t *Table) sweep() {
	if again := t.sweepAt(time.Now()); !again {
		debug.FreeOSMemory() // a burst is over: return its memory to the kernel
	}
}

func (t *Table) sweepAt(now time.Time) (again bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := &t.kept
	k.armed = false
	fresh := 0
	for fresh < len(k.answers) && now.Sub(k.answers[fresh].endedAt) > answerAge {
		t.forget(k.answers[fresh])
		fresh++
	}
	k.answers = slices.Clone(k.answers[fresh:])
	var unread int64
	young := false
	for _, p := range slices.Backward(k.ended) {
		if now.Sub(p.endedAt) <= unreadAge {
			young = true
			continue
		}
		_, _, out := p.Out.Span()
		_, _, failed := p.Err.Span()
		if unread += out + failed; unread > maxUnread {
			p.Out.Drop()
			p.Err.Drop()
			unread -= out + failed
		}
	}
	if young || len(k.answers) > 0 {
		k.armLocked(t)
		return true
	}
	return false
}

// shownArgs shortens argv to what ps shows.
func shownArgs(argv []string) []string {
	room := maxShownArgv
	var shown []string
	for _, arg := range argv {
		if room <= 0 {
			break
		}
		shown = append(shown, shorten(arg, room))
		room -= len(arg) + 1
	}
	return shown
}

// Argv returns its shortened command line, or nil for a run that has ended.
func (p *Process) Argv() []string {
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	return p.argv
}

func sortByStart(all []*Process) {
	slices.SortFunc(all, func(a, b *Process) int { return a.Started.Compare(b.Started) })
}
