package proc

import (
	"runtime"
	"syscall"
	"unsafe"
)

const (
	ioprioWhoProcess  = 1
	processorMaskSize = 1024 // bytes: as many processors as a kernel can have
)

// scheduling is how the agent's threads were scheduled when it started. Code in the sandbox may be the same user, and may
// then take processors from a thread or lower its priority for the disk. Children would inherit that. A lowered priority
// for the processor stays, as only RLIMIT_NICE or a capability brings it back: it slows nobody but this sandbox.
type scheduling struct {
	processors []byte
}

func readScheduling() scheduling {
	mask := make([]byte, processorMaskSize)
	n, _, errno := syscall.RawSyscall(syscall.SYS_SCHED_GETAFFINITY, 0, uintptr(len(mask)), uintptr(unsafe.Pointer(&mask[0])))
	if errno != 0 {
		return scheduling{}
	}
	return scheduling{mask[:n]}
}

// restored calls fork on a thread that is scheduled as it was at the start.
func (s scheduling) restored(fork func() (int, error)) (int, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if len(s.processors) > 0 {
		mask := &s.processors[0]
		syscall.RawSyscall(syscall.SYS_SCHED_SETAFFINITY, 0, uintptr(len(s.processors)), uintptr(unsafe.Pointer(mask)))
	}
	syscall.RawSyscall(syscall.SYS_IOPRIO_SET, ioprioWhoProcess, 0, 0)
	return fork()
}
