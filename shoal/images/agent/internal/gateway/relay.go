package gateway

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/frame"
)

const (
	agentWait    = 5 * time.Second  // how long the relay waits for the sandbox's agent
	dialTimeout  = 5 * time.Second  // for the connection to the relay
	helloTimeout = 12 * time.Second // for both HELLOs: the agent tries the port for 5 s

	// serverTimeout is how long a server in a sandbox may read nothing of a request, or take until its response begins.
	serverTimeout = 300 * time.Second
)

// agentError is the sandbox agent's own error about a port. All other errors are about the connection to the agent.
type agentError struct{ fault *fault.Fault }

func (e *agentError) Error() string { return e.fault.Message }

// dialSandbox connects to a port in a sandbox through its node's relay (PROTOCOL.md, "Raw connections").
func dialSandbox(ctx context.Context, relay, grant string, port int) (*bufferedConn, error) {
	conn, err := dialRelay(ctx, relay)
	if err != nil {
		return nil, err
	}
	buffered, err := handshake(ctx, conn, grant, port)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &bufferedConn{Conn: conn, buffered: buffered, timeout: serverTimeout}, nil
}

// dialRelay connects to a relay: `host:port`, or `tls://FINGERPRINT@host:port` (PROTOCOL.md, "TLS").
func dialRelay(ctx context.Context, relay string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: dialTimeout}
	pinned, secure := strings.CutPrefix(relay, "tls://")
	if !secure {
		return dialer.DialContext(ctx, "tcp", relay)
	}
	fingerprint, address, found := strings.Cut(pinned, "@")
	if !found {
		return nil, fmt.Errorf("%q is not a relay's address", relay)
	}
	config := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // no authority signed it: the cluster told which certificate it is
		VerifyPeerCertificate: func(certificates [][]byte, _ [][]*x509.Certificate) error {
			digest := sha256.Sum256(certificates[0])
			if hex.EncodeToString(digest[:]) != fingerprint {
				return fmt.Errorf("%s is not the relay that the cluster told: another certificate", address)
			}
			return nil
		},
	}
	return (&tls.Dialer{NetDialer: &dialer, Config: config}).DialContext(ctx, "tcp", address)
}

// handshake sends the HELLO and reads the HELLOs of the relay and of the agent. It returns what the server sent right
// after them.
func handshake(ctx context.Context, conn net.Conn, grant string, port int) ([]byte, error) {
	deadline := time.Now().Add(helloTimeout)
	if limit, found := ctx.Deadline(); found {
		deadline = earlier(deadline, limit)
	}
	conn.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	hello, err := json.Marshal(map[string]any{"v": 1, "token": grant, "wait_ms": agentWait.Milliseconds(), "dial": port})
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(frame.Append(nil, frame.Hello, 0, hello)); err != nil {
		return nil, err
	}
	decoder := frame.NewDecoder(conn)
	if err := readHello(decoder); err != nil {
		return nil, err
	}
	if err := readHello(decoder); err != nil {
		var f *fault.Fault
		if errors.As(err, &f) {
			err = &agentError{f}
		}
		return nil, err
	}
	if !stop() {
		return nil, ctx.Err()
	}
	conn.SetDeadline(time.Time{})
	return append([]byte(nil), decoder.Buffered()...), nil
}

// readHello returns the error in a HELLO, or nil if the HELLO accepts the connection.
func readHello(decoder *frame.Decoder) error {
	f, err := decoder.Next()
	if err != nil {
		return err
	}
	var hello struct {
		OK    bool         `json:"ok"`
		Error *fault.Fault `json:"error"`
	}
	switch {
	case f.Kind != frame.Hello || json.Unmarshal(f.Payload, &hello) != nil:
		return fmt.Errorf("the relay does not speak the protocol: %w", frame.ErrMalformed)
	case hello.Error != nil:
		return hello.Error
	case !hello.OK:
		return fmt.Errorf("the relay does not speak the protocol: %w", frame.ErrMalformed)
	}
	return nil
}
