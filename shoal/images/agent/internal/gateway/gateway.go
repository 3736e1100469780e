package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"shoal/agent/internal/spans"
)

// idleDrainTimeout is how long idle connections stay open when the gateway drains. The answer to a request in that time
// closes its connection.
const idleDrainTimeout = 5 * time.Second

// Gateway is the running program.
type Gateway struct {
	config       Config
	version      string
	listenerFile *os.File
	clients      *clients
	control      *control
	replicas     *replicas
	api          *api
	tunnels      *tunnels
	tracer       *spans.Tracer
	stop         context.CancelFunc

	counters counters
	requests atomic.Int64 // in progress
	draining atomic.Bool
	stopNow  atomic.Bool // end without draining
}

// Run serves until the context ends, a command on the control socket ends it, or the control socket has had no
// connection for idle_exit_s. It then drains for up to drain_s. It prints one JSON line with its pid when it is ready.
// It does not shut down the socket of listenerFile, which other processes hold too.
func Run(ctx context.Context, config Config, version string, listenerFile *os.File, out io.Writer) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	g := &Gateway{
		config: config, version: version, listenerFile: listenerFile, stop: stop, replicas: newReplicas(config.Replicas),
	}
	g.api, g.tunnels = newAPI(g.replicas), newTunnels(&g.config, g.replicas)
	g.tracer = spans.New(config.Traces)
	defer g.tracer.Close(lastSpansTimeout)
	server, err := g.newServer()
	if err != nil {
		return err
	}
	if g.clients, err = newClientListener(listenerFile); err != nil {
		return fmt.Errorf("the listening socket: %w", err)
	}
	defer g.clients.Close()
	if g.control, err = listenControl(config.Control); err != nil {
		return fmt.Errorf("the control socket: %w", err)
	}
	defer g.control.close()
	watchCtx, stopWatching := context.WithCancel(context.Background())
	defer stopWatching()
	go g.replicas.watch(watchCtx)
	go g.acceptControl()
	served := make(chan error, 1)
	go func() { served <- g.serve(server) }()
	line, err := json.Marshal(map[string]int{"pid": os.Getpid()})
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(out, "%s\n", line); err != nil {
		return err
	}
	if err := g.waitForStop(ctx, served); err != nil {
		return err
	}
	return g.drain(server)
}

func (g *Gateway) newServer() (*http.Server, error) {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	server := &http.Server{
		Handler:                      g,
		ReadHeaderTimeout:            seconds(g.config.HeaderTimeoutS),
		IdleTimeout:                  seconds(g.config.IdleTimeoutS),
		MaxHeaderBytes:               maxHeaderBytes,
		DisableGeneralOptionsHandler: true,
		Protocols:                    protocols,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 100,
			SendPingTimeout:      keepAlive.Idle,
			PingTimeout:          keepAlive.Idle,
			WriteByteTimeout:     clientTimeout,
		},
		ErrorLog: log.New(panicFilter{os.Stderr}, "gateway: ", 0),
	}
	if g.config.TLSCert == "" {
		protocols.SetUnencryptedHTTP2(true)
		return server, nil
	}
	pair, err := loadCertificate(g.config.TLSCert, g.config.TLSKey)
	if err != nil {
		return nil, fmt.Errorf("tls_cert and tls_key: %w", err)
	}
	protocols.SetHTTP2(true)
	server.TLSConfig = pair.config()
	return server, nil
}

func (g *Gateway) serve(server *http.Server) error {
	if server.TLSConfig != nil {
		return server.ServeTLS(g.clients, "", "")
	}
	return server.Serve(g.clients)
}

// ServeHTTP implements http.Handler.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.requests.Add(1)
	defer g.requests.Add(-1)
	in := g.config.newInbound(r)
	rw := newResponse(w, in, g.draining.Load(), &g.counters.api)
	var to target
	var toTunnel bool
	refused := checkRequest(r)
	if refused == nil {
		to, toTunnel = g.config.targetOf(r, in)
	}
	if toTunnel {
		rw.counter = &g.counters.tunnel
	}
	rw.counter.open.Add(1)
	defer rw.count()
	if g.tracer != nil {
		span := g.startSpan(r, in, toTunnel)
		defer func() { endSpan(span, rw, in, to.sandbox) }()
	}
	switch {
	case refused != nil:
		rw.counter.rejected.Add(1)
		refused.write(rw, in.id)
	case toTunnel:
		g.tunnels.serve(rw, r, in, to)
	default:
		g.api.serve(rw, r, in)
	}
}

// waitForStop returns when the gateway has to end.
func (g *Gateway) waitForStop(ctx context.Context, served <-chan error) error {
	limit := seconds(g.config.IdleExitS)
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-served:
			return err
		case <-time.After(time.Second):
		}
		if idle := g.control.idle(); limit > 0 && idle > limit {
			log.Printf("gateway: no connection to the control socket for %s: ending", idle.Round(time.Second))
			return nil
		}
	}
}

// drain stops accepting connections and waits for the requests in progress. From now on each response closes its
// connection, so that hardly any client sends a request on a connection that is being closed.
func (g *Gateway) drain(server *http.Server) error {
	if g.stopNow.Load() {
		return server.Close()
	}
	until := time.Now().Add(seconds(g.config.DrainS))
	g.draining.Store(true)
	g.clients.Close()
	waitForZero(earlier(until, time.Now().Add(idleDrainTimeout)), g.clients.open.Load)
	ctx, cancel := context.WithDeadline(context.Background(), until)
	defer cancel()
	server.Shutdown(ctx)
	waitForZero(until, g.requests.Load) // Shutdown does not wait for upgraded connections
	return server.Close()
}

func waitForZero(until time.Time, count func() int64) {
	for count() > 0 && time.Now().Before(until) {
		time.Sleep(20 * time.Millisecond)
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// panicFilter passes on what the server logs about panics. It drops the rest, which is about clients' mistakes.
type panicFilter struct{ w io.Writer }

func (d panicFilter) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("panic")) {
		return d.w.Write(p)
	}
	return len(p), nil
}
