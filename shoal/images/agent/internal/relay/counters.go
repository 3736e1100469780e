package relay

import "sync/atomic"

// counters are what the relay has counted since it started, exposed ports included.
type counters struct {
	connections atomic.Int64 // that were accepted
	rejected    atomic.Int64 // of these and of those that were not accepted, those that were not let in
}

// metrics is the answer to the command "metrics".
type metrics struct {
	Open        int64 `json:"open"`
	Connections int64 `json:"connections"`
	Rejected    int64 `json:"rejected"`
	Containers  int   `json:"containers"`
}

func (r *Relay) metrics() metrics {
	r.mu.Lock()
	defer r.mu.Unlock()
	return metrics{
		Open:        r.clients.Load() + r.active.Load(),
		Connections: r.counters.connections.Load(), Rejected: r.counters.rejected.Load(),
		Containers: len(r.containers),
	}
}
