package boot

import (
	"errors"
	"fmt"
	"syscall"
)

const prSetDumpable = 4

// shield keeps code in the sandbox, which may be root with the capability to take any user, from reaching this process.
// It comes before anything else runs in the container.
//
//   - Nobody traces it, or opens its memory, environment and descriptors through /proc: that needs a process that may be
//     dumped, or CAP_SYS_PTRACE.
//   - Nobody changes its limits, which children would inherit: prlimit needs one group that is its real, effective and
//     saved one, or CAP_SYS_RESOURCE. So its real group is another one. Every thread needs that, and Go has several
//     before it runs any of our code. So the program is linked with an entry of its own, `shoal_agent_enter`: that takes
//     the next number for the real group of a namespace's first process, whose only thread it is, and then enters Go.
//   - Signals are handled (see handleSignals) or, as SIGKILL and SIGSTOP, never delivered to a namespace's first process
//     from inside. Those that look like faults of its own, which Go would end it for, the seccomp profile refuses.
//
// What remains are its threads' processors and priorities: see proc.scheduling.
func shield() error {
	if group := syscall.Getegid(); syscall.Getgid() == group {
		return fmt.Errorf("cannot protect the agent's limits: %w", whyOneGroup(group))
	}
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, prSetDumpable, 0, 0); errno != 0 {
		return fmt.Errorf("cannot hide the agent's memory: %w", errno)
	}
	return nil
}

// whyOneGroup asks again for what the program's entry asked for, now that an error can be told.
func whyOneGroup(group int) error {
	_, _, errno := syscall.RawSyscall(syscall.SYS_SETRESGID, uintptr(group+1), uintptr(group), uintptr(group))
	if errno == 0 {
		return errors.New("the program is not linked with its entry")
	}
	return errno
}
