package relay

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
)

// ownDepth is how many pid namespaces the relay itself is in, counted from the machine's own.
var ownDepth = func() int {
	depth, _, err := namespacePids(os.Getpid())
	if err != nil {
		return 1
	}
	return depth
}()

// isAgent tells whether the process at the other end of a container's socket is that container's first process: pid 1 of a pid namespace
// right below the relay's own. Code inside can dial the socket, but it is never pid 1, and the kernel, not the peer, says who it is.
func isAgent(conn *net.UnixConn) error {
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
		return fmt.Errorf("process %d is not the first of a container (depth %d, pid %d inside)", credentials.Pid, depth, last)
	}
	return nil
}

// namespacePids reads the NSpid line of a process: in how many pid namespaces it is, and its pid in the innermost.
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
	return 0, 0, fmt.Errorf("process %d: the kernel tells no NSpid", pid)
}
