package server

import (
	"sync"
	"time"
)

// Activity counts what keeps a sandbox from being idle, and knows since when the count has been zero.
type Activity struct {
	mu    sync.Mutex
	count int
	since time.Time
}

// NewActivity makes a count of zero: the sandbox is idle from now on.
func NewActivity() *Activity { return &Activity{since: time.Now()} }

// Change adds delta to the count: +1 when an activity begins, -1 when it ends.
func (a *Activity) Change(delta int) {
	a.mu.Lock()
	a.count += delta
	if a.count == 0 {
		a.since = time.Now()
	}
	a.mu.Unlock()
}

// Touch begins the idle time anew, as something that begins and ends at once.
func (a *Activity) Touch() {
	a.Change(+1)
	a.Change(-1)
}

// Idle returns for how long the sandbox has been idle, and how long it takes at least until that time reaches after.
func (a *Activity) Idle(after time.Duration) (idle, wait time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.count > 0 {
		return 0, after // idle time cannot begin before now
	}
	idle = time.Since(a.since)
	return idle, after - idle
}
