package relay

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
)

// ownDepth is the nesting depth of the relay's own pid namespace.
var ownDepth = func() int {
	depth, _, err := namespacePids(os.Getpid())
	if err != nil {
		return 1
	}
	return depth
}()

// checkAgent returns an error unless the peer on a container's socket is the container's first process: pid 1 of a pid
// namespace directly below the relay's own. Other processes in the container can dial the socket, but they are not pid
// 1. The pid comes from the kernel, not from the peer.
func checkAgent(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var credentials *syscall.Ucred
	var failure error
	if err := raw.Control(func(fd uintptr) {
		credentials, failure = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if failure != nil {
		return failure
	}
	depth, last, err := namespacePids(int(credentials.Pid))
	if err != nil {
		return err
	}
	if depth != ownDepth+1 || last != 1 {
		return fmt.Errorf("process %d is not the first of a container (namespace depth %d, pid %d in it)",
			credentials.Pid, depth, last)
	}
	return nil
}

// namespacePids returns the depth of a process's pid namespace and its pid there, from the NSpid line of its status.
func namespacePids(pid int) (depth, last int, err error) {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, 0, err
	}
	for _, line := range bytes.Split(status, []byte{'\n'}) {
		if rest, found := bytes.CutPrefix(line, []byte("NSpid:")); found {
			pids := bytes.Fields(rest)
			if len(pids) == 0 {
				break
			}
			last, err := strconv.Atoi(string(pids[len(pids)-1]))
			return len(pids), last, err
		}
	}
	return 0, 0, fmt.Errorf("process %d has no NSpid in its status", pid)
}
