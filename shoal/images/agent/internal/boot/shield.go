package boot

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
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
//     before it runs any of our code, so the agent executes itself once more: a real group outlasts that. Where it does
//     not (see takeOtherGroup), Go's own Setresgid must do. It reaches all threads by a queued signal, and would wait
//     for ever where code in another sandbox has taken all of those.
//   - Signals are handled (see handleSignals) or, as SIGKILL and SIGSTOP, never delivered to a namespace's first process
//     from inside. Those that look like faults of its own, which Go would end it for, the seccomp profile refuses.
//
// What remains are its threads' processors and priorities: see proc.scheduling.
func shield() error {
	if syscall.Getgid() == syscall.Getegid() {
		if err := takeOtherGroup(); err != nil {
			return fmt.Errorf("cannot protect the agent's limits: %w", err)
		}
	}
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, prSetDumpable, 0, 0); errno != 0 {
		return fmt.Errorf("cannot hide the agent's memory: %w", errno)
	}
	return nil
}

// takeOtherGroup gives every thread another real group than its effective one: at first by executing this program again.
// gVisor, and Linux before 6.16, make the effective group the real one where a process without new privileges executes
// anything. Then it takes the group that it had, which is its second argument, in all threads.
func takeOtherGroup() error {
	if len(os.Args) > 2 {
		group, err := strconv.Atoi(os.Args[2])
		if err != nil {
			return err
		}
		return syscall.Setresgid(group+1, group, group)
	}
	runtime.LockOSThread()
	group := syscall.Getegid()
	if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESGID, uintptr(group+1), uintptr(group), uintptr(group)); errno != 0 {
		return errno
	}
	path, err := os.Executable()
	if err != nil {
		return err
	}
	return syscall.Exec(path, append(os.Args, strconv.Itoa(group)), os.Environ())
}
