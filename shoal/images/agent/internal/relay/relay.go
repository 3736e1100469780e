package relay

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"shoal/agent/internal/token"
)

const (
	maxClients = 16_384
	maxWaiting = 1_024 // clients that have not said HELLO yet
)

// Relay is the running program.
type Relay struct {
	config   Config
	version  string
	listener *net.TCPListener
	stop     context.CancelFunc

	clients atomic.Int64
	waiting atomic.Int64

	knocking atomic.Int64 // connections to exposed ports that are not joined yet
	joined   atomic.Int64 // … and that are, or about to be

	exposing sync.Mutex // one change of exposed ports at a time

	mu         sync.Mutex
	containers map[string]*container

	controllers  atomic.Int64
	controlledAt atomic.Int64 // unix nanoseconds of the moment in which the last control connection ended
}

// Run serves until the context ends, the node asks for the end, or nobody was at the control socket for too long. It prints one JSON line with
// its address when it is ready.
func Run(ctx context.Context, config Config, version string, out io.Writer) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	raiseDescriptors()
	address, err := net.ResolveTCPAddr("tcp", config.Listen)
	if err != nil {
		return err
	}
	r := &Relay{config: config, version: version, stop: stop, containers: make(map[string]*container)}
	r.controlledAt.Store(time.Now().UnixNano())
	// The control socket first: whoever holds it is the node's one relay.
	control, err := listenControl(config.Control)
	if err != nil {
		return err
	}
	defer control.Close()
	if r.listener, err = net.ListenTCP("tcp", address); err != nil {
		return err
	}
	defer r.listener.Close()
	if err := r.openAll(); err != nil {
		return err
	}
	defer r.closeAll()
	line, err := json.Marshal(map[string]any{"address": r.address(), "pid": os.Getpid()})
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(out, "%s\n", line); err != nil {
		return err
	}
	go r.acceptControl(control)
	go r.acceptClients(ctx)
	r.waitForEnd(ctx)
	return nil
}

func (r *Relay) address() string { return r.listener.Addr().String() }

func (r *Relay) acceptClients(ctx context.Context) {
	for {
		client, err := r.listener.AcceptTCP()
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors, say
			continue
		}
		if r.clients.Load() >= maxClients || r.waiting.Load() >= maxWaiting {
			client.Close()
			continue
		}
		keepWatch(client)
		r.clients.Add(1)
		r.waiting.Add(1)
		go func() {
			defer r.clients.Add(-1)
			r.serve(client)
		}()
	}
}

// keepWatch has the kernel find out within 35 s that a client vanished without a word; while something is on its way to it, only after a
// quarter of an hour of sending that again. TCP_USER_TIMEOUT would shorten this, but also cuts who is there and does not read, and that may
// take its time.
func keepWatch(client *net.TCPConn) {
	client.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 4})
}

// greeted: a client has said its HELLO, or failed to.
func (r *Relay) greeted() { r.waiting.Add(-1) }

// waitForEnd returns when the relay is to end.
func (r *Relay) waitForEnd(ctx context.Context) {
	limit := r.config.idleExit()
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
		idle := time.Since(time.Unix(0, r.controlledAt.Load()))
		if limit > 0 && r.controllers.Load() == 0 && idle > limit {
			log.Printf("relay: nobody at the control socket for %s: ending", idle.Round(time.Second))
			return
		}
	}
}

// openAll takes up the containers that an earlier relay served: their directories are all there is to know.
func (r *Relay) openAll() error {
	if err := os.MkdirAll(r.config.Root, 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(r.config.Root)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() && token.ValidKey(entry.Name()) {
			if err := r.add(entry.Name()); err != nil {
				log.Printf("relay: %s: %v", entry.Name(), err)
			}
		}
	}
	return nil
}

func (r *Relay) closeAll() {
	r.mu.Lock()
	containers := r.containers
	r.containers = nil
	r.mu.Unlock()
	for _, c := range containers {
		c.close()
	}
}

func (r *Relay) find(key string) *container {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.containers[key]
}

// add opens a container's doorway. Idempotent.
func (r *Relay) add(key string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.containers == nil || r.containers[key] != nil {
		return nil
	}
	c, err := openContainer(r.config.Root, key)
	if err != nil {
		return err
	}
	r.containers[key] = c
	return nil
}

// remove closes it. Idempotent.
func (r *Relay) remove(key string) {
	r.mu.Lock()
	c := r.containers[key]
	delete(r.containers, key)
	r.mu.Unlock()
	if c != nil {
		c.close()
	}
}

// raiseDescriptors takes all that the machine allows: each sandbox costs two, each client two more.
func raiseDescriptors() {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
		limit.Cur = limit.Max
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			log.Printf("relay: raising the limit of descriptors: %v", err)
		}
	}
}
