package duplex

import (
	"syscall"
	"unsafe"
)

const (
	pollErr = 0x8
	pollHup = 0x10
)

// hung tells whether a connection can carry nothing more in either direction, whatever its queues still hold.
func hung(conn Conn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return true
	}
	var is bool
	if err := raw.Control(func(fd uintptr) { is = hungUp(fd) }); err != nil {
		return true // closed on this side
	}
	return is
}

// waitHung returns once that is so, or at the connection's read deadline. Nobody else may be reading.
func waitHung(conn Conn) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	raw.Read(hungUp) // woken by every change of the socket; a connection that is at its end has few
}

func hungUp(fd uintptr) bool {
	poll := struct {
		fd              int32
		events, revents int16
	}{fd: int32(fd)} // errors and hang-ups are told unasked
	var now syscall.Timespec
	_, _, errno := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&poll)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
	return errno == 0 && poll.revents&(pollErr|pollHup) != 0
}
