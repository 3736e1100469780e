package boot

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"
)

const (
	filterVariable = "SHOAL_SECCOMP"

	sysSeccompSetFilter = 1
	seccompThreadSync   = 1 // SECCOMP_FILTER_FLAG_TSYNC
	instructionSize     = 8
	mostInstructions    = 4096
)

// confine takes on the filter of system calls in the file that SHOAL_SECCOMP names, if the engine left that to the agent:
// one that was compiled before, where the runtime would compile the profile again for each container. All that this
// process starts has it, too. Without it nothing may run here, so an error ends the agent.
func confine() error {
	path := os.Getenv(filterVariable)
	if path == "" {
		return nil
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	count := len(program) / instructionSize
	if count == 0 || count > mostInstructions || len(program)%instructionSize != 0 {
		return fmt.Errorf("%s: %d bytes are no filter", path, len(program))
	}
	filter := struct {
		length uint16
		code   *byte
	}{uint16(count), &program[0]}
	thread, _, errno := syscall.RawSyscall(sysSeccomp, sysSeccompSetFilter, seccompThreadSync, uintptr(unsafe.Pointer(&filter)))
	runtime.KeepAlive(program)
	if errno != 0 {
		return fmt.Errorf("%s: %w", path, errno)
	}
	if thread != 0 { // then none has it (seccomp(2), SECCOMP_FILTER_FLAG_TSYNC)
		return fmt.Errorf("%s: thread %d cannot take it on", path, thread)
	}
	return nil
}
