package relay

import (
	"encoding/json"
	"io"
	"net"
	"time"

	"shoal/agent/internal/frame"
	"shoal/agent/internal/token"
)

const (
	agentTimeout = 5 * time.Second  // for the agent of a container whose exposed port is dialled
	dialTimeout  = 10 * time.Second // for that agent's answer
)

// connect takes a parked connection and sends the admission on it. It skips connections that broke while they were
// parked.
func (c *container) connect(adm admission, timeout time.Duration) (*net.UnixConn, error) {
	deadline := time.Now().Add(timeout)
	for {
		agent, err := c.take(time.Until(deadline))
		if err != nil {
			return nil, err
		}
		if _, err := agent.Write(helloFrame(adm)); err == nil {
			return agent, nil
		}
		agent.Close()
	}
}

// dial makes the container's agent connect to a port. It returns the connection and what the server on the port has
// sent already.
func (c *container) dial(port int) (*net.UnixConn, []byte, error) {
	adm := admission{Version: version, Scopes: []string{token.ScopeTunnel}, Dial: port}
	agent, err := c.connect(adm, agentTimeout)
	if err != nil {
		return nil, nil, err
	}
	early, err := awaitDialReply(agent)
	if err != nil {
		agent.Close()
		return nil, nil, err
	}
	return agent, early, nil
}

// forward writes data that was read ahead. It is small enough for the socket's buffer.
func forward(conn net.Conn, early []byte) error {
	if len(early) == 0 {
		return nil
	}
	_, err := conn.Write(early)
	return err
}

// awaitDialReply reads the agent's HELLO on a raw connection. It returns what was read after it, or the error in the
// HELLO.
func awaitDialReply(agent net.Conn) ([]byte, error) {
	agent.SetReadDeadline(time.Now().Add(dialTimeout))
	defer agent.SetReadDeadline(time.Time{})
	return readDialReply(agent)
}

func readDialReply(agent io.Reader) ([]byte, error) {
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
