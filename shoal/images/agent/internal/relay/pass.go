package relay

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"time"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/frame"
	"shoal/agent/internal/token"
)

const (
	maxPass         = 2 << 10 // a token in the first line of a connection to a private port
	dialledPatience = 10 * time.Second
)

// readPass reads the line that a connection to a private port begins with and checks the token in it. It returns what was read behind it.
func readPass(client net.Conn, secret []byte, key string, port int, now time.Time) ([]byte, error) {
	client.SetReadDeadline(now.Add(helloPatience))
	defer client.SetReadDeadline(time.Time{})
	line, ahead, err := readLine(client)
	if err != nil {
		return nil, err
	}
	return ahead, checkPass(line, secret, key, port, now)
}

// readLine returns the first line without its end, and what was read behind it.
func readLine(r io.Reader) (line, ahead []byte, err error) {
	buffer := make([]byte, maxPass+1)
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
	return nil, nil, fault.New(fault.Unauthenticated, "the first line is longer than a token")
}

// checkPass tells why a token does not admit to a port of a container.
func checkPass(line, secret []byte, key string, port int, now time.Time) error {
	claims, err := token.Check(secret, string(line), now)
	if err != nil {
		return err
	}
	if claims.Key != key {
		return fault.New(fault.PermissionDenied, "the token is for another sandbox")
	}
	return claims.MayPass(port)
}

// awaitDialled reads the agent's HELLO on a raw connection. It returns what was read behind it, or the error that the agent tells.
func awaitDialled(agent net.Conn) ([]byte, error) {
	agent.SetReadDeadline(time.Now().Add(dialledPatience))
	defer agent.SetReadDeadline(time.Time{})
	return readDialled(agent)
}

func readDialled(agent io.Reader) ([]byte, error) {
	decoder := frame.NewDecoder(agent)
	f, err := decoder.Next()
	if err != nil {
		return nil, err
	}
	var answer welcome
	if f.Kind != frame.Hello || json.Unmarshal(f.Payload, &answer) != nil {
		return nil, frame.ErrMalformed
	}
	if answer.Error != nil {
		return nil, answer.Error
	}
	if !answer.OK {
		return nil, frame.ErrMalformed
	}
	return decoder.Buffered(), nil
}
