package proc

import (
	"hash/maphash"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/users"
)

// MainID is the process id of the sandbox's own command.
const MainID = "p-main"

// Table holds the processes that clients started, by the id they chose: those that run and those that ended recently.
type Table struct {
	reaper      *Reaper
	users       *users.Database
	self        *users.User
	defaults    atomic.Pointer[Defaults]
	null        int
	executable  string
	adjustScore bool
	scheduling  scheduling
	onChange    func(delta int)
	settling    atomic.Int64 // runs that wait in Settle

	mu    sync.Mutex
	procs map[string]*Process
	kept  retention
	seed  maphash.Seed
}

// NewTable makes an empty table. It calls onChange for every process except the main one: with +1 when it starts and -1
// when it ends.
func NewTable(defaults Defaults, db *users.Database, onChange func(delta int)) (*Table, error) {
	null, err := syscall.Open("/dev/null", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		// The image has no /dev/null. A pipe without a writer is just as empty.
		var fds [2]int
		if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC); err != nil {
			return nil, err
		}
		syscall.Close(fds[1])
		null = fds[0]
	}
	executable, err := os.Executable()
	if err != nil {
		return nil, err
	}
	t := &Table{
		users: db, null: null, executable: executable, onChange: onChange, procs: make(map[string]*Process),
		seed: maphash.MakeSeed(), adjustScore: ownScore() < childScore, scheduling: readScheduling(),
	}
	uid := strconv.Itoa(os.Geteuid())
	if t.self, err = db.Lookup(uid); err != nil {
		t.self = &users.User{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	}
	t.defaults.Store(&defaults)
	t.reaper = NewReaper()
	return t, nil
}

func ownScore() int {
	n, _ := strconv.Atoi(strings.TrimSpace(string(readBounded("/proc/self/oom_score_adj", 64))))
	return n
}

// Defaults returns the defaults for new processes.
func (t *Table) Defaults() Defaults { return *t.defaults.Load() }

// SetDefaults changes the defaults for new processes.
func (t *Table) SetDefaults(d Defaults) { t.defaults.Store(&d) }

// Self returns the agent's own user.
func (t *Table) Self() *users.User { return t.self }

// User finds the user that spec names; "" is the sandbox's default user.
func (t *Table) User(spec string) (*users.User, error) {
	if spec == "" {
		spec = t.defaults.Load().User
	}
	if spec == "" {
		return t.self, nil
	}
	return t.users.Lookup(spec)
}

// Get finds a process that runs or ended recently.
func (t *Table) Get(id string) (*Process, error) {
	t.mu.Lock()
	p := t.procs[id]
	t.mu.Unlock()
	if p != nil {
		<-p.ready
		if p.failure == nil {
			return p, nil
		}
	}
	f := fault.New(fault.ProcessNotFound, "the sandbox has no process %q, or it ended long ago", shorten(id, 64))
	f.Field = "id"
	return nil, f
}

// Start starts s, or finds the process that an earlier call with the same id started. The process does not depend on
// the caller's connection.
func (t *Table) Start(s *Spec) (*Process, error) {
	p, started, err := t.begin(s, false)
	if err != nil || !started {
		return p, err
	}
	for _, pipe := range p.pipes {
		pipe.start()
	}
	go t.attend(p)
	return p, nil
}

// begin registers and starts s. started is false if a process with this id was already there.
func (t *Table) begin(s *Spec, run bool) (p *Process, started bool, err error) {
	if !ValidID(s.ID) {
		return nil, false, fault.Invalid("id", "it must match p-[0-9a-z]{1,32}")
	}
	t.mu.Lock()
	p = t.procs[s.ID]
	if p == nil && t.kept.seen(maphash.String(t.seed, s.ID)) {
		t.mu.Unlock()
		return nil, false, fault.New(
			fault.FailedPrecondition, "%s was started before, and its answer is no longer kept", s.ID,
		)
	}
	if p != nil {
		t.mu.Unlock()
		if p.run != run {
			return nil, false, fault.New(fault.AlreadyExists, "%s is the id of another process: choose a new one", s.ID)
		}
		<-p.ready
		return p, false, p.failure
	}
	p = &Process{
		ID: s.ID, table: t, run: run, ready: make(chan struct{}), exited: make(chan struct{}),
		Out: NewRing(s.MaxOutput, s.Tail), Err: NewRing(s.MaxOutput, s.Tail),
	}
	if run {
		p.finished = make(chan struct{})
		p.attached.Store(1)
	}
	t.procs[s.ID] = p
	t.mu.Unlock()
	t.changed(p, +1)
	if p.failure = t.start(p, s); p.failure != nil {
		t.mu.Lock()
		delete(t.procs, s.ID)
		t.mu.Unlock()
		t.changed(p, -1)
	} else {
		p.argv = shownArgs(s.Argv)
		p.watchTimeout(s.Timeout)
	}
	close(p.ready)
	return p, p.failure == nil, p.failure
}

// attend waits until a process and its output have ended.
func (t *Table) attend(p *Process) {
	<-p.exited
	p.release()
	t.changed(p, -1)
	t.retire(p)
	for _, pipe := range p.pipes {
		<-pipe.done
	}
	t.mu.Lock()
	p.endedAt = time.Now()
	t.mu.Unlock()
	t.kept.arm(t)
}

// release frees what only a running process needs.
func (p *Process) release() {
	if p.timer != nil {
		p.timer.Stop()
	}
	if p.Stdin != nil {
		p.Stdin.stop()
	}
}

func (t *Table) changed(p *Process, delta int) {
	if p.ID != MainID {
		t.onChange(delta)
	}
}

// Running counts the processes that have not ended, and all that are known.
func (t *Table) Running() (running, known int) {
	all := t.List()
	for _, p := range all {
		if p.Running() {
			running++
		}
	}
	return running, len(all)
}

// List returns the known processes, in the order in which they started.
func (t *Table) List() []*Process {
	t.mu.Lock()
	all := make([]*Process, 0, len(t.procs))
	for _, p := range t.procs {
		select {
		case <-p.ready:
			if p.failure == nil {
				all = append(all, p)
			}
		default:
		}
	}
	t.mu.Unlock()
	sortByStart(all)
	return all
}

// KillAll sends SIGTERM to every process, and SIGKILL to those left after the grace time. As the first process of a pid
// namespace the agent reaches every process in it, otherwise only those that it started.
func (t *Table) KillAll(grace time.Duration) {
	t.signalAll(syscall.SIGTERM)
	deadline := time.Now().Add(grace)
	for t.anyLeft() && time.Now().Before(deadline) {
		time.Sleep(2 * time.Millisecond)
	}
	if t.anyLeft() {
		t.signalAll(syscall.SIGKILL)
	}
}

// clearBudget bounds the time of Clear.
const clearBudget = 5 * time.Second

// Clear kills every process, as KillAll does without a grace time, and returns once none is left.
func (t *Table) Clear() error {
	deadline := time.Now().Add(clearBudget)
	for t.anyLeft() {
		if time.Now().After(deadline) {
			return fault.New(fault.Unavailable, "processes that hang in the kernel are left after %s", clearBudget)
		}
		t.signalAll(syscall.SIGKILL)
		time.Sleep(time.Millisecond)
	}
	return nil
}

func (t *Table) signalAll(sig syscall.Signal) {
	if os.Getpid() == 1 {
		syscall.Kill(-1, sig)
		return
	}
	for _, p := range t.List() {
		p.Signal(sig, true)
	}
}

func (t *Table) anyLeft() bool {
	if os.Getpid() == 1 {
		return syscall.Kill(-1, 0) != syscall.ESRCH
	}
	running, _ := t.Running()
	return running > 0
}
