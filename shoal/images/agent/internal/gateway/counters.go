package gateway

import (
	"slices"
	"sync/atomic"
	"time"
)

// bounds are the upper ends of the histogram's buckets, in seconds.
var bounds = []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30}

// counters are what the gateway has counted since it started.
type counters struct {
	api, tunnel counter
}

// counter counts the requests of one kind.
type counter struct {
	open     atomic.Int64    // requests in progress, those included that became other protocols
	classes  [6]atomic.Int64 // finished requests by the first digit of their status; 0: the client left before the answer
	rejected atomic.Int64    // of these, those that the gateway itself refused
	received atomic.Int64    // bytes of bodies, and of what came after a protocol switch
	sent     atomic.Int64
	buckets  [15]atomic.Int64 // by bounds, and one for all that took longer: time until the answer began
	nanos    atomic.Int64     // the sum of these times
}

func (c *counter) observe(took time.Duration) {
	i, _ := slices.BinarySearch(bounds, took.Seconds())
	c.buckets[i].Add(1)
	c.nanos.Add(took.Nanoseconds())
}

// count counts the response once it is done.
func (w *response) count() {
	w.counter.open.Add(-1)
	w.counter.classes[min(w.status/100, 5)].Add(1)
}

// kindMetrics is a counter in the answer to the command "metrics".
type kindMetrics struct {
	Open     int64    `json:"open"`
	Classes  [6]int64 `json:"classes"`
	Rejected int64    `json:"rejected"`
	Received int64    `json:"received"`
	Sent     int64    `json:"sent"`
	Buckets  []int64  `json:"buckets"`
	Seconds  float64  `json:"seconds"`
}

func (c *counter) metrics() kindMetrics {
	m := kindMetrics{
		Open: c.open.Load(), Rejected: c.rejected.Load(), Received: c.received.Load(), Sent: c.sent.Load(),
		Seconds: float64(c.nanos.Load()) / 1e9,
	}
	for i := range c.classes {
		m.Classes[i] = c.classes[i].Load()
	}
	for i := range c.buckets {
		m.Buckets = append(m.Buckets, c.buckets[i].Load())
	}
	return m
}

// metrics is the answer to the command "metrics".
type metrics struct {
	Connections int64       `json:"connections"`
	Replicas    int         `json:"replicas"`
	Bounds      []float64   `json:"bounds"`
	API         kindMetrics `json:"api"`
	Tunnel      kindMetrics `json:"tunnel"`
}

func (g *Gateway) metrics() metrics {
	return metrics{
		Connections: g.clients.open.Load(), Replicas: len(*g.replicas.list.Load()), Bounds: bounds,
		API: g.counters.api.metrics(), Tunnel: g.counters.tunnel.metrics(),
	}
}
