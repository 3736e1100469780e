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
)

const (
	publicSuffix   = ".sock"     // where a replica serves the API
	internalSuffix = ".internal" // where it answers the gateway's own questions

	lookEvery = 100 * time.Millisecond
	// restFor is how long a replica that took no connection is asked only if nobody else is there.
	restFor = 500 * time.Millisecond
)

// replica is one process of the API on this node.
type replica struct {
	id           string
	outstanding  atomic.Int64 // requests that it has
	restingUntil atomic.Int64 // unix nanoseconds
}

func (r *replica) rest() { r.restingUntil.Store(time.Now().Add(restFor).UnixNano()) }

// replicas is the directory of their sockets, looked at again and again. A replica that is to go takes its sockets away first.
type replicas struct {
	dir  string
	list atomic.Pointer[[]*replica]
	turn atomic.Uint32 // spreads what has no other preference

	mu      sync.Mutex
	changed chan struct{} // closed when the list changes
}

func newReplicas(dir string) *replicas {
	r := &replicas{dir: dir, changed: make(chan struct{})}
	r.list.Store(&[]*replica{})
	r.look()
	return r
}

// watch looks until the context ends.
func (r *replicas) watch(ctx context.Context) {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			r.look()
		}
	}
}

// look takes up what is in the directory now.
func (r *replicas) look() {
	r.mu.Lock()
	defer r.mu.Unlock()
	entries, err := os.ReadDir(r.dir)
	if err != nil && !os.IsNotExist(err) {
		log.Printf("gateway: looking for replicas: %v", err) // out of descriptors, say: those that were known are asked on
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

// pick returns the replica with the fewest requests that is not among those tried; nil where none is left.
func (r *replicas) pick(tried []*replica) *replica {
	list := *r.list.Load()
	if len(list) == 0 {
		return nil
	}
	now := time.Now().UnixNano()
	start := int(r.turn.Add(1) % uint32(len(list)))
	var best *replica
	var fewest int64
	var resting bool
	for i := range list {
		candidate := list[(start+i)%len(list)]
		if slices.Contains(tried, candidate) {
			continue
		}
		n, rests := candidate.outstanding.Load(), candidate.restingUntil.Load() > now
		if best == nil || (resting && !rests) || (resting == rests && n < fewest) {
			best, fewest, resting = candidate, n, rests
		}
	}
	return best
}

// wait returns once there may be another replica than before, and false where the time is up.
func (r *replicas) wait(ctx context.Context, until time.Time) bool {
	left := time.Until(until)
	if left <= 0 || ctx.Err() != nil {
		return false
	}
	r.mu.Lock()
	changed := r.changed
	r.mu.Unlock()
	timer := time.NewTimer(min(left, lookEvery/2))
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
		r.look()
	case <-ctx.Done():
		return false
	}
	return true
}

// path is the socket of a replica.
func (r *replicas) path(id, suffix string) string { return filepath.Join(r.dir, id+suffix) }
