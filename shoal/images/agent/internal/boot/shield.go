package boot

import (
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
//     saved one, or CAP_SYS_RESOURCE. Executing a program makes the saved group the effective one again.
//   - Signals are handled (see heedSignals) or, as SIGKILL and SIGSTOP, never delivered to a namespace's first process
//     from inside. Those that look like faults of its own, which Go would end it for, the seccomp profile refuses.
//
// What remains are its threads' processors and priorities: see proc.scheduling.
func shield() error {
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, prSetDumpable, 0, 0); errno != 0 {
		return fmt.Errorf("cannot hide the agent's memory: %w", errno)
	}
	group := syscall.Getgid()
	saved := 1
	if group == saved {
		saved = 2
	}
	if err := syscall.Setresgid(group, group, saved); err != nil {
		return fmt.Errorf("cannot protect the agent's limits: %w", err)
	}
	return nil
}
