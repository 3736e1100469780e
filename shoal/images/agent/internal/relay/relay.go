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

	"shoal/agent/internal/duplex"
	"shoal/agent/internal/steady"
	"shoal/agent/internal/token"
)

const (
	maxClients       = 16_384
	maxAwaitingHello = 1_024 // clients whose HELLO has not arrived yet
)

// Relay is the running program.
type Relay struct {
	config   Config
	version  string
	listener *net.TCPListener
	stop     context.CancelFunc

	counters      counters
	clients       atomic.Int64
	awaitingHello atomic.Int64

	// Connections to exposed ports: not yet joined to the container, and joined.
	pending atomic.Int64
	active  atomic.Int64

	exposeMu sync.Mutex // serializes changes of exposed ports

	mu         sync.Mutex
	containers map[string]*container

	controlConns  atomic.Int64
	lastControlAt atomic.Int64 // when the last control connection ended, by steady.Now
}

// Run serves until the context ends, a command on the control socket ends it, or the control socket has had no
// connection for idle_exit_s. It prints one JSON line with its address when it is ready.
func Run(ctx context.Context, config Config, version string, out io.Writer) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	raiseFileLimit()
	address, err := net.ResolveTCPAddr("tcp", config.Listen)
	if err != nil {
		return err
	}
	r := &Relay{config: config, version: version, stop: stop, containers: make(map[string]*container)}
	r.lastControlAt.Store(int64(steady.Now()))
	// First, because it ensures that there is only one relay on the node.
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
	line, err := json.Marshal(map[string]any{
		"address": r.address(), "fingerprint": config.fingerprint(), "pid": os.Getpid(),
	})
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(out, "%s\n", line); err != nil {
		return err
	}
	go r.acceptControl(control)
	go r.acceptClients(ctx)
	r.waitForStop(ctx)
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
			time.Sleep(10 * time.Millisecond) // out of file descriptors, for example
			continue
		}
		if r.clients.Load() >= maxClients || r.awaitingHello.Load() >= maxAwaitingHello {
			client.Close()
			r.counters.rejected.Add(1)
			continue
		}
		setKeepAlive(client)
		r.counters.connections.Add(1)
		r.clients.Add(1)
		r.awaitingHello.Add(1)
		go func() {
			defer r.clients.Add(-1)
			r.serve(r.secured(client))
		}()
	}
}

// secured is the connection as it is, or with TLS on it.
func (r *Relay) secured(client *net.TCPConn) clientConn {
	if r.config.identity == nil {
		return client
	}
	return duplex.ServeTLS(client, r.config.identity.config)
}

// setKeepAlive detects within 35 s that an idle client vanished. While data is in flight to the client, the kernel
// first retransmits it for 15 minutes. TCP_USER_TIMEOUT would shorten that, but it would also cut clients that are
// alive and read slowly, which is allowed.
func setKeepAlive(client *net.TCPConn) {
	client.SetKeepAliveConfig(net.KeepAliveConfig{
		Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 4,
	})
}

// waitForStop returns when the relay has to end.
func (r *Relay) waitForStop(ctx context.Context) {
	limit := r.config.idleExit()
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
		idle := steady.Now() - time.Duration(r.lastControlAt.Load())
		if limit > 0 && r.controlConns.Load() == 0 && idle > limit {
			log.Printf("relay: no connection to the control socket for %s: ending", idle.Round(time.Second))
			return
		}
	}
}

// openAll adds the containers of an earlier relay. Their directories, or links to them, are all the state there is.
func (r *Relay) openAll() error {
	if err := os.MkdirAll(r.config.Root, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(r.config.Root)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if token.ValidKey(entry.Name()) {
			if err := r.add(entry.Name(), process{}); err != nil {
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

// add starts to serve a container, or tells which process is its first. Idempotent.
func (r *Relay) add(key string, first process) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.containers == nil {
		return nil
	}
	c := r.containers[key]
	if c == nil {
		var err error
		if c, err = openContainer(r.config.Root, key, token.AgentSecret(r.config.secret, key)); err != nil {
			return err
		}
		r.containers[key] = c
	}
	if first.pid != 0 {
		c.identify(first)
	}
	return nil
}

// remove stops serving a container and cuts its connections. Idempotent. An add at the same time waits, or the close
// would take away the new socket.
func (r *Relay) remove(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.containers[key]; c != nil {
		delete(r.containers, key)
		c.close()
	}
}

// raiseFileLimit raises the limit of file descriptors to the hard limit: each sandbox uses two, each client two more.
func raiseFileLimit() {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
		limit.Cur = limit.Max
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			log.Printf("relay: raising the limit of file descriptors: %v", err)
		}
	}
}
