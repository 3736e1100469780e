package duplex

import (
	"syscall"
	"unsafe"
)

const (
	pollErr = 0x8
	pollHup = 0x10
)

// hung reports whether both directions of a connection are closed. Its queues may still hold data.
func hung(conn Conn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return true
	}
	var is bool
	if err := raw.Control(func(fd uintptr) { is = hungUp(fd) }); err != nil {
		return true // this side has closed the connection
	}
	return is
}

// waitHung waits until hung is true, or until the connection's read deadline. Nothing else may read from it meanwhile.
func waitHung(conn Conn) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	raw.Read(hungUp) // every change of the socket wakes this, but a connection near its end has few changes
}

func hungUp(fd uintptr) bool {
	poll := struct {
		fd              int32
		events, revents int16
	}{fd: int32(fd)} // poll always reports errors and hang-ups
	var now syscall.Timespec
	_, _, errno := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&poll)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
	return errno == 0 && poll.revents&(pollErr|pollHup) != 0
}
