package gateway

import (
	"context"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"shoal/agent/internal/steady"
)

const (
	publicSuffix   = ".sock"     // of the socket on which a replica serves the API
	internalSuffix = ".internal" // of the socket on which it answers the gateway's own requests

	scanInterval = 100 * time.Millisecond
	// backoffTime is how long a replica that accepted no connection is used only if there is no other.
	backoffTime = 500 * time.Millisecond
)

// replica is one process of the API on this node.
type replica struct {
	id           string
	outstanding  atomic.Int64 // requests in progress
	backoffUntil atomic.Int64 // by steady.Now
}

func (r *replica) backOff() { r.backoffUntil.Store(int64(steady.Now() + backoffTime)) }

// replicas is the list of the replicas in the directory of their sockets, which is scanned at an interval. A replica
// removes its sockets before it ends.
type replicas struct {
	dir       string
	list      atomic.Pointer[[]*replica]
	nextIndex atomic.Uint32 // for round robin among equally busy replicas

	mu      sync.Mutex
	changed chan struct{} // closed when the list changes, and replaced
}

func newReplicas(dir string) *replicas {
	r := &replicas{dir: dir, changed: make(chan struct{})}
	r.list.Store(&[]*replica{})
	r.scan()
	return r
}

// watch scans the directory until the context ends.
func (r *replicas) watch(ctx context.Context) {
	ticker := time.NewTicker(scanInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			r.scan()
		}
	}
}

// scan updates the list from the directory.
func (r *replicas) scan() {
	r.mu.Lock()
	defer r.mu.Unlock()
	entries, err := os.ReadDir(r.dir)
	if err != nil && !os.IsNotExist(err) {
		log.Printf("gateway: scanning for replicas: %v", err) // out of file descriptors, for example: keep the list
		return
	}
	old := *r.list.Load()
	now := make([]*replica, 0, len(entries))
	for _, entry := range entries {
		id, found := strings.CutSuffix(entry.Name(), publicSuffix)
		if !found || entry.Type()&os.ModeSocket == 0 {
			continue
		}
		i := slices.IndexFunc(old, func(known *replica) bool { return known.id == id })
		if i >= 0 {
			now = append(now, old[i])
		} else {
			now = append(now, &replica{id: id})
		}
	}
	if slices.Equal(old, now) {
		return
	}
	r.list.Store(&now)
	close(r.changed)
	r.changed = make(chan struct{})
}

// pick returns the replica with the fewest requests that is not in tried, or nil if there is none. Replicas that back
// off come last.
func (r *replicas) pick(tried []*replica) *replica {
	list := *r.list.Load()
	if len(list) == 0 {
		return nil
	}
	now := int64(steady.Now())
	start := int(r.nextIndex.Add(1) % uint32(len(list)))
	var best *replica
	var fewest int64
	var bestBackingOff bool
	for i := range list {
		candidate := list[(start+i)%len(list)]
		if slices.Contains(tried, candidate) {
			continue
		}
		n, backingOff := candidate.outstanding.Load(), candidate.backoffUntil.Load() > now
		if best == nil || (bestBackingOff && !backingOff) || (bestBackingOff == backingOff && n < fewest) {
			best, fewest, bestBackingOff = candidate, n, backingOff
		}
	}
	return best
}

// wait returns true when the list may have changed, and false when the time is up.
func (r *replicas) wait(ctx context.Context, until time.Time) bool {
	remaining := time.Until(until)
	if remaining <= 0 || ctx.Err() != nil {
		return false
	}
	r.mu.Lock()
	changed := r.changed
	r.mu.Unlock()
	timer := time.NewTimer(min(remaining, scanInterval/2))
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
		r.scan()
	case <-ctx.Done():
		return false
	}
	return true
}

// path returns the path of a replica's socket.
func (r *replicas) path(id, suffix string) string { return filepath.Join(r.dir, id+suffix) }
