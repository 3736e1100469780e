"""Which system calls a sandbox may make whatever their arguments, which are refused, and why.

The names are those of the tables of the kernel for x86-64, 32-bit x86, arm64 and 32-bit ARM; an engine skips what its
libseccomp or its architecture does not have. What is not allowed is refused, with a reason here or without, so a call
that a later kernel adds is closed until it stands here. Calls that depend on their arguments are in `bounds.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Group:
    """System calls that share one reason."""

    why: str
    calls: tuple[str, ...]


def _group(why: str, calls: str) -> Group:
    return Group(why, tuple(calls.split()))


ALLOWED = (
    _group(
        "open, read and write files",
        """
        open openat openat2 creat close close_range read readv pread64 preadv preadv2 write writev pwrite64 pwritev
        pwritev2 lseek _llseek dup dup2 dup3 flock fsync fdatasync sync syncfs sync_file_range
        sync_file_range2 arm_sync_file_range fallocate ftruncate ftruncate64 truncate truncate64 readahead fadvise64
        fadvise64_64 arm_fadvise64_64 copy_file_range sendfile sendfile64 splice tee vmsplice cachestat
        """,
    ),
    _group(
        "look at files and change them; the file system's own permissions decide",
        """
        stat stat64 lstat lstat64 fstat fstat64 newfstatat fstatat64 statx oldstat oldlstat oldfstat statfs statfs64
        fstatfs fstatfs64 access faccessat faccessat2 chmod fchmod fchmodat fchmodat2 chown chown32 fchown fchown32
        fchownat lchown lchown32 utime utimes utimensat utimensat_time64 futimesat umask link linkat symlink symlinkat
        unlink unlinkat rename renameat renameat2 mkdir mkdirat rmdir mknod mknodat readlink readlinkat getdents
        getdents64 readdir getcwd chdir fchdir getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr setxattr
        lsetxattr fsetxattr removexattr lremovexattr fremovexattr getxattrat setxattrat listxattrat removexattrat
        file_getattr name_to_handle_at inotify_init inotify_init1 inotify_add_watch inotify_rm_watch
        """,
    ),
    _group(
        "memory of their own",
        """
        brk mmap mmap2 munmap mremap mprotect msync madvise mincore mlock mlock2 mlockall munlock munlockall mseal
        remap_file_pages memfd_create memfd_secret map_shadow_stack membarrier pkey_alloc pkey_free pkey_mprotect
        """,
    ),
    _group(
        "processes and threads; what makes namespaces is in `bounds.py`",
        """
        fork vfork execve execveat exit exit_group wait4 waitid waitpid getpid getppid gettid getpgid getpgrp getsid
        setpgid setsid set_tid_address set_robust_list get_robust_list rseq futex futex_time64 futex_waitv futex_wake
        futex_wait futex_requeue kill tkill tgkill pidfd_open prctl arch_prctl set_thread_area
        get_thread_area set_tls cacheflush breakpoint getcpu process_mrelease uretprobe uprobe
        """,
    ),
    _group(
        "who they are; capabilities and ids are bounded by what the container was given",
        """
        getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32 getresuid getresuid32 getresgid
        getresgid32 getgroups getgroups32 setuid setuid32 setgid setgid32 setreuid setreuid32 setregid setregid32
        setresuid setresuid32 setresgid setresgid32 setfsuid setfsuid32 setfsgid setfsgid32 setgroups setgroups32
        capget capset
        """,
    ),
    _group(
        "signals",
        """
        rt_sigaction rt_sigprocmask rt_sigpending rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64
        rt_sigreturn sigaction sigprocmask sigpending sigsuspend sigreturn signal sgetmask ssetmask
        sigaltstack signalfd signalfd4 pause restart_syscall
        """,
    ),
    _group(
        "clocks and timers, to read and to wait; none sets the machine's time",
        """
        time times gettimeofday clock_gettime clock_gettime64 clock_getres clock_getres_time64 clock_nanosleep
        clock_nanosleep_time64 nanosleep alarm getitimer setitimer timer_create timer_delete timer_getoverrun
        timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64
        timerfd_settime timerfd_settime64
        """,
    ),
    _group(
        "wait for many things at once",
        """
        poll ppoll ppoll_time64 select _newselect pselect6 pselect6_time64 epoll_create epoll_create1 epoll_ctl
        epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2 pipe pipe2
        """,
    ),
    _group(
        "sockets, once there is one: `bounds.py` decides which kinds there are",
        """
        bind connect listen accept accept4 getsockname getpeername getsockopt setsockopt send sendto sendmsg sendmmsg
        recv recvfrom recvmsg recvmmsg recvmmsg_time64 shutdown
        """,
    ),
    _group(
        "queues, semaphores and shared memory in an IPC namespace of their own",
        """
        ipc shmget shmat shmctl shmdt semget semop semtimedop semtimedop_time64 semctl msgget msgsnd msgrcv msgctl
        mq_open mq_unlink mq_timedsend mq_timedsend_time64 mq_timedreceive mq_timedreceive_time64 mq_notify
        mq_getsetattr
        """,
    ),
    _group(
        "asynchronous file access of the old kind, which databases use",
        "io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents io_pgetevents_time64",
    ),
    _group(
        "limits and priorities; a sandbox's own are above them",
        """
        getrlimit ugetrlimit setrlimit prlimit64 getrusage getpriority setpriority nice ioprio_get ioprio_set
        sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_setparam sched_getscheduler
        sched_setscheduler sched_getattr sched_setattr sched_get_priority_max sched_get_priority_min
        sched_rr_get_interval sched_rr_get_interval_time64
        """,
    ),
    _group("what the system is", "uname olduname oldolduname sysinfo getrandom"),
    _group(
        "give up rights of their own",
        "seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self",
    ),
)

# Refused as everything is that is not allowed: the list says why, and a test tries each of them from inside.
REFUSED = (
    _group(
        "io_uring reaches most of the kernel by a way that no filter sees",
        "io_uring_setup io_uring_enter io_uring_register",
    ),
    _group("keyrings are counted by user id for the whole machine", "add_key request_key keyctl"),
    _group("it stops the kernel in the middle of a copy, which makes races easy to win", "userfaultfd"),
    _group("programs in the kernel, and looks at the whole machine", "bpf perf_event_open lookup_dcookie"),
    _group(
        "mounts",
        """
        mount umount umount2 pivot_root fsopen fsconfig fsmount fspick open_tree open_tree_attr move_mount
        mount_setattr swapon swapoff
        """,
    ),
    _group("namespaces of others", "setns"),
    _group("another root directory", "chroot"),
    _group("a file by its number, past every directory's permissions and every mount", "open_by_handle_at"),
    _group("they watch or report for a whole file system", "fanotify_init fanotify_mark"),
    _group("they would take files out of the sandbox's disk quota", "file_setattr quotactl quotactl_fd"),
    _group(
        "the memory and open files of other processes; debuggers use `ptrace`",
        "process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp",
    ),
    _group("other kernels, and code in this one", "kexec_load kexec_file_load init_module finit_module delete_module"),
    _group(
        "the machine's time, name, log, accounts and power",
        """
        settimeofday stime clock_settime clock_settime64 adjtimex clock_adjtime clock_adjtime64 sethostname
        setdomainname syslog acct reboot vhangup
        """,
    ),
    _group("the machine's devices", "ioperm iopl vm86 vm86old"),
)

ABSENT = (
    _group("32-bit sockets of any family, by a pointer that no filter can follow", "socketcall"),
    _group("its flags lie behind a pointer; C libraries turn to `clone`", "clone3"),
    _group("placement of memory on processors", "get_mempolicy set_mempolicy mbind migrate_pages move_pages"),
    _group("mounts of the machine by another way than `/proc`", "statmount listmount"),
    _group("rarely used and often wrong in the past", "modify_ldt uselib sysfs ustat _sysctl"),
)
"""Answered `ENOSYS`, as by a kernel without them: programs that look for these have another way."""
