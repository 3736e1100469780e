package relay

import (
	"bytes"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"shoal/agent/internal/token"
)

// secretName is the file beside the socket in which a starting agent finds its secret. The relay removes it once the
// agent has shown the secret, which is before a client may start anything in the container.
const secretName = "secret"

// secretTimeout bounds the wait for the secret, which an agent sends as soon as it is connected.
const secretTimeout = 2 * time.Second

// process is one process of the node's for good: a pid may be used again, but not with the same start.
type process struct {
	pid     int
	started uint64 // in clock ticks after boot
}

// peerOf returns the process that dialled, as the kernel knows it. The pid is 0 for a process that the relay's pid
// namespace does not see.
func peerOf(conn *net.UnixConn) (process, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return process{}, err
	}
	var credentials *syscall.Ucred
	var failure error
	if err := raw.Control(func(fd uintptr) {
		credentials, failure = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return process{}, err
	}
	if failure != nil {
		return process{}, failure
	}
	return processOf(int(credentials.Pid))
}

// processOf reads when a process started from its stat, whose second field may hold spaces and parentheses.
func processOf(pid int) (process, error) {
	if pid <= 0 {
		return process{}, nil
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return process{}, err
	}
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return process{}, fmt.Errorf("process %d has a stat without its start", pid)
	}
	started, err := strconv.ParseUint(string(fields[19]), 10, 64)
	return process{pid, started}, err
}

// checkSecret returns an error unless the peer sends the container's secret. What it sends beyond that is hostile, and
// left unread.
func (c *container) checkSecret(conn *net.UnixConn) error {
	conn.SetReadDeadline(time.Now().Add(secretTimeout))
	defer conn.SetReadDeadline(time.Time{})
	var shown [token.AgentSecretSize]byte
	if _, err := io.ReadFull(conn, shown[:]); err != nil {
		return fmt.Errorf("it did not send the secret: %w", err)
	}
	if subtle.ConstantTimeCompare(shown[:], c.secret) != 1 {
		return errors.New("it sent another secret")
	}
	if err := os.Remove(filepath.Join(c.directory, secretName)); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}
