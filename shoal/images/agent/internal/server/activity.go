package server

import (
	"sync"
	"time"
)

// Activity counts what keeps a sandbox from being idle, and knows since when there is nothing.
type Activity struct {
	mu    sync.Mutex
	count int
	since time.Time
}

// NewActivity begins idle.
func NewActivity() *Activity { return &Activity{since: time.Now()} }

// Change counts one more (+1) or one less (-1).
func (a *Activity) Change(delta int) {
	a.mu.Lock()
	a.count += delta
	if a.count == 0 {
		a.since = time.Now()
	}
	a.mu.Unlock()
}

// Idle tells for how long there has been nothing, or how long at least it will take until that is after.
func (a *Activity) Idle(after time.Duration) (idle, wait time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.count > 0 {
		return 0, after // it cannot end before now
	}
	idle = time.Since(a.since)
	return idle, after - idle
}
