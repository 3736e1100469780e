package relay

import (
	"bytes"
	"io"
	"net"
	"time"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/token"
)

// maxTokenLine bounds the first line of a connection to a private port.
const maxTokenLine = 2 << 10

// readToken reads and checks the token in the first line of a connection to a private port. It returns what was read
// after the line.
func readToken(client net.Conn, secret []byte, key string, port int, now time.Time) ([]byte, error) {
	client.SetReadDeadline(now.Add(helloTimeout))
	defer client.SetReadDeadline(time.Time{})
	line, early, err := readLine(client)
	if err != nil {
		return nil, err
	}
	return early, checkToken(line, secret, key, port, now)
}

// readLine returns the first line without its line end, and what was read after it.
func readLine(r io.Reader) (line, early []byte, err error) {
	buffer := make([]byte, maxTokenLine+1)
	for n := 0; n < len(buffer); {
		m, err := r.Read(buffer[n:])
		if end := bytes.IndexByte(buffer[n:n+m], '\n'); end >= 0 {
			return bytes.TrimSuffix(buffer[:n+end], []byte{'\r'}), buffer[n+end+1 : n+m], nil
		}
		if err != nil {
			return nil, nil, err
		}
		n += m
	}
	return nil, nil, fault.New(fault.Unauthenticated, "the first line is too long for a token")
}

// checkToken returns an error if the token does not allow connections to a port of a container.
func checkToken(line, secret []byte, key string, port int, now time.Time) error {
	claims, err := token.Check(secret, string(line), now)
	if err != nil {
		return err
	}
	if claims.Key != key {
		return fault.New(fault.PermissionDenied, "the token is for another sandbox")
	}
	return claims.CheckPass(port)
}
