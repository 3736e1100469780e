package files

import (
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"shoal/agent/internal/fault"
	"shoal/agent/internal/mux"
	"shoal/agent/internal/users"
)

const (
	unchanged     = ^uintptr(0) // "leave this id as it is" to setresuid and setresgid
	setDumpable   = 4           // PR_SET_DUMPABLE
	maskDefault   = 0o022
	fileDefault   = 0o666
	folderDefault = 0o777
)

// umask is the agent's, which every process in the sandbox starts with. The kernel has no call that only reads it.
var umask = func() uint32 {
	mask := syscall.Umask(maskDefault)
	syscall.Umask(mask)
	return uint32(mask)
}()

// own is the agent's own identity, to which each thread returns.
var own = func() *users.User {
	groups, _ := syscall.Getgroups()
	u := &users.User{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	for _, gid := range groups {
		u.Groups = append(u.Groups, uint32(gid))
	}
	return u
}()

// actor is the user as whom one request acts on files, so that the kernel decides what that user may do.
//
// To Linux, ids belong to a thread. While the actor is in, its goroutine keeps its thread, and that thread alone has the
// user's effective ids and groups, and no capabilities unless the user is root. The real ids stay the agent's: the user's
// processes may not signal or trace the thread. A request leaves before it waits for its client, so that no thread is
// held by a client that stands still.
type actor struct {
	user *users.User // nil: the agent's own, for which nothing is to be done
	in   bool
}

func actorFor(user *users.User) *actor {
	if user.UID == own.UID && user.GID == own.GID {
		return &actor{}
	}
	return &actor{user: user}
}

// enter makes the thread the user's.
func (a *actor) enter() error {
	if a.user == nil || a.in {
		return nil
	}
	runtime.LockOSThread()
	a.in = true
	if err := become(a.user.Groups, unchanged, uintptr(a.user.GID), uintptr(a.user.UID)); err != 0 {
		a.leave()
		f := fault.New(
			fault.PermissionDenied, "user: the agent cannot act as %d:%d in this sandbox: %v", a.user.UID, a.user.GID, err,
		)
		f.Field = "user"
		return f
	}
	return nil
}

// leave gives the thread its own ids back. If the kernel refuses that, the goroutine keeps the thread, which then ends
// with it.
func (a *actor) leave() {
	if a.user == nil || !a.in {
		return
	}
	a.in = false
	// The effective user comes first, because with it the capabilities for the others come back.
	if become(own.Groups, uintptr(own.UID), uintptr(own.GID), unchanged) == 0 {
		runtime.UnlockOSThread()
	}
}

// outside runs do with the agent's own identity, to wait for the client.
func (a *actor) outside(do func() error) error {
	if a == nil || !a.in {
		return do()
	}
	a.leave()
	err := do()
	if again := a.enter(); err == nil {
		err = again
	}
	return err
}

// reply leaves and ends the stream.
func (a *actor) reply(st *mux.Stream, value any) {
	a.leave()
	st.Reply(value)
}

// become sets the ids of this thread only; the functions of package syscall set those of all threads. first is an
// effective user to take before the groups are changed, last one to take after that.
func become(groups []uint32, first, gid, last uintptr) syscall.Errno {
	var list unsafe.Pointer
	if len(groups) > 0 {
		list = unsafe.Pointer(&groups[0])
	}
	if first != unchanged {
		if _, _, err := syscall.RawSyscall(syscall.SYS_SETRESUID, unchanged, first, unchanged); err != 0 {
			return err
		}
	}
	if _, _, err := syscall.RawSyscall(syscall.SYS_SETGROUPS, uintptr(len(groups)), uintptr(list), 0); err != 0 {
		return err
	}
	if _, _, err := syscall.RawSyscall(syscall.SYS_SETRESGID, unchanged, gid, unchanged); err != 0 {
		return err
	}
	if last != unchanged {
		if _, _, err := syscall.RawSyscall(syscall.SYS_SETRESUID, unchanged, last, unchanged); err != 0 {
			return err
		}
	}
	// With new ids a process gets the system's default (fs.suid_dumpable), which may let others trace it.
	syscall.RawSyscall(syscall.SYS_PRCTL, setDumpable, 0, 0)
	return 0
}
