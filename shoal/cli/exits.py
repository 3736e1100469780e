"""Exit codes: the process's own, or one for each class of error. The only map from the error tree."""

from __future__ import annotations

from shoal.model.errors import (
    AlreadyExists,
    CommandFailed,
    CommandNotExecutable,
    CommandNotFound,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    SandboxEnded,
    ShoalError,
    Unauthenticated,
    Unavailable,
)
from shoal.model.states import RETURNCODES, Reason

NOBODY_READS = 141
"""A shell's exit code for a program that SIGPIPE ended."""

EXIT_CODES: dict[type[ShoalError], int] = {
    InvalidRequest: 2,
    CommandFailed: 1,
    NotFound: 66,
    Unavailable: 69,
    Internal: 70,
    AlreadyExists: 73,
    QuotaExceeded: 75,
    Unauthenticated: 77,
    PermissionDenied: 77,
    FailedPrecondition: 78,
    DeadlineExceeded: 124,
    CommandNotExecutable: 126,
    CommandNotFound: 127,
    SandboxEnded: 137,
}
"""By class; other classes have their parent's. From 64 on as in `sysexits.h`, from 124 on as in shells."""

HELP = """\
Exit codes: the process's own, or 128+n if signal n ended it. For Shoal's own errors: 2 the call is wrong, 66 not found,
69 no answer (try again), 70 a bug in Shoal, 73 the name is taken, 75 a limit was hit, 77 not allowed, 78 not possible
in this state, 124 it took too long, 125 the sandbox could not start, 126 and 127 the command cannot be run or does not
exist, 130 interrupted, 137 the sandbox ended meanwhile.
"""


def exit_code_of(error: ShoalError) -> int:
    """The exit code for an error."""
    if isinstance(error, SandboxEnded) and error.reason in RETURNCODES.keys() - {Reason.COMPLETED}:
        return RETURNCODES[error.reason]
    for cls in type(error).__mro__:
        if cls in EXIT_CODES:
            return EXIT_CODES[cls]
    return EXIT_CODES[Internal]


def exit_code_of_process(returncode: int) -> int:
    """The exit code in a shell: 128+n for a process that signal n ended."""
    return 128 - returncode if returncode < 0 else returncode
