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
)

// lastWord is how long clients on idle connections may still come with a request once the gateway is to go: its answer ends their connection.
const lastWord = 5 * time.Second

// hurry is how long the end takes where nothing is waited for.
const hurry = 20 * time.Millisecond

// Gateway is the running program.
type Gateway struct {
	config    Config
	version   string
	listening *os.File
	clients   *clients
	control   *control
	replicas  *replicas
	api       *api
	tunnels   *tunnels
	stop      context.CancelFunc

	requests atomic.Int64 // under way
	draining atomic.Bool
	hasty    atomic.Bool // it is to end without waiting for what runs
}

// Run serves until the context ends, the node asks for the end, or nobody was at the control socket for too long; then what runs may go on for
// `drain_s`. It prints one JSON line with its pid when it is ready. listening is the socket, which stays open for others.
func Run(ctx context.Context, config Config, version string, listening *os.File, out io.Writer) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	g := &Gateway{config: config, version: version, listening: listening, stop: stop, replicas: newReplicas(config.Replicas)}
	g.api, g.tunnels = newAPI(g.replicas), newTunnels(&g.config, g.replicas)
	server, err := g.newServer()
	if err != nil {
		return err
	}
	if g.clients, err = listenOn(listening); err != nil {
		return fmt.Errorf("the listening socket: %w", err)
	}
	defer g.clients.Close()
	if g.control, err = listenControl(config.Control); err != nil {
		return fmt.Errorf("the control socket: %w", err)
	}
	defer g.control.close()
	watching, done := context.WithCancel(context.Background())
	defer done()
	go g.replicas.watch(watching)
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
	if err := g.waitForEnd(ctx, served); err != nil {
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
			WriteByteTimeout:     clientPatience,
		},
		ErrorLog: log.New(defectsOnly{os.Stderr}, "gateway: ", 0),
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
	in := g.config.describe(r)
	answer := newResponse(w, in, g.draining.Load())
	if p := checkRequest(r); p != nil {
		p.write(answer, in.id)
	} else if target, found := g.config.targetOf(r, in); found {
		g.tunnels.serve(answer, r, in, target)
	} else {
		g.api.serve(answer, r, in)
	}
}

// waitForEnd returns when the gateway is to end.
func (g *Gateway) waitForEnd(ctx context.Context, served <-chan error) error {
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
			log.Printf("gateway: nobody at the control socket for %s: ending", idle.Round(time.Second))
			return nil
		}
	}
}

// drain accepts nobody any more and lets what runs come to its end. Each answer now ends its connection, so clients are hardly ever between two
// requests when theirs is closed.
func (g *Gateway) drain(server *http.Server) error {
	if g.hasty.Load() {
		time.Sleep(hurry) // the answer to the order is on its way
		return server.Close()
	}
	until := time.Now().Add(seconds(g.config.DrainS))
	g.draining.Store(true)
	g.clients.Close()
	g.awaitQuiet(earlier(until, time.Now().Add(lastWord)), g.clients.open.Load)
	ctx, cancel := context.WithDeadline(context.Background(), until)
	defer cancel()
	server.Shutdown(ctx)
	g.awaitQuiet(until, g.requests.Load) // upgraded connections, of which the server no longer knows
	return server.Close()
}

func (g *Gateway) awaitQuiet(until time.Time, left func() int64) {
	for left() > 0 && time.Now().Before(until) {
		time.Sleep(20 * time.Millisecond)
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// defectsOnly passes on what the server logs of a defect of ours; what clients do wrong is nobody's news.
type defectsOnly struct{ w io.Writer }

func (d defectsOnly) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("panic")) {
		return d.w.Write(p)
	}
	return len(p), nil
}
