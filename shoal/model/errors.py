"""Every error that Shoal raises, classed by what the caller should do.

    ShoalError
    ├── InvalidRequest            the call is wrong: fix it
    │   ├── CommandNotFound           no such program in the sandbox (exit code 127)
    │   └── CommandNotExecutable      there, but it cannot be run (exit code 126)
    ├── Unauthenticated           who are you? get a token
    ├── PermissionDenied          you may not
    ├── NotFound                  there is no such thing
    │   ├── SandboxNotFound
    │   ├── ProcessNotFound
    │   ├── ImageNotFound
    │   ├── PathNotFound
    │   ├── UserNotFound
    │   ├── EnvironmentNotFound
    │   ├── TokenNotFound
    │   └── TunnelNotFound
    ├── AlreadyExists             the name is taken
    ├── FailedPrecondition        right call, wrong state (carries the state)
    │   └── CommandFailed             it ran and did not exit with 0 (where the caller asked to be told so)
    ├── QuotaExceeded             ask less, or later (a full disk is one)
    ├── SandboxEnded              carries reason and exit code
    ├── DeadlineExceeded          it took longer than you allowed
    ├── Unavailable               nothing happened: retry the same call; or where it is not `retryable`, look first
    └── Internal                  a defect of Shoal's: report it

Each class has a stable `code`; errors cross process and language borders as `{"code", "message", ...fields}`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar


class ShoalError(Exception):
    """Any error of Shoal's. `retryable`: the very same call may succeed later without harm."""

    code: ClassVar[str] = "error"
    retryable: bool = False

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.fields: dict[str, Any] = {k: v for k, v in fields.items() if v is not None}

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.to_dict(),)

    def to_dict(self) -> dict[str, Any]:
        """The error as it travels: `code`, `message` and its own fields."""
        return {"code": self.code, "message": self.message, **self.fields}


class InvalidRequest(ShoalError):
    """The call is wrong as it stands. `field` names the argument at fault, where there is one."""

    code = "invalid_request"

    @property
    def field(self) -> str | None:
        value = self.fields.get("field")
        return None if value is None else str(value)


class CommandNotFound(InvalidRequest):
    """The program is not in the sandbox (what a shell reports as exit code 127)."""

    code = "command_not_found"
    exit_code = 127


class CommandNotExecutable(InvalidRequest):
    """The program is there but cannot be executed (what a shell reports as exit code 126)."""

    code = "command_not_executable"
    exit_code = 126


class Unauthenticated(ShoalError):
    """No credentials, or credentials that are wrong or expired."""

    code = "unauthenticated"


class PermissionDenied(ShoalError):
    """The caller is known and may not do this."""

    code = "permission_denied"


class NotFound(ShoalError):
    """There is no such thing, and there never was."""

    code = "not_found"


class SandboxNotFound(NotFound):
    """No sandbox of that id or name. One that ended is `SandboxEnded`, never this."""

    code = "sandbox_not_found"


class ProcessNotFound(NotFound):
    """No process of that id in the sandbox, or it ended long ago."""

    code = "process_not_found"


class ImageNotFound(NotFound):
    """No such image on the node, and no registry gave it."""

    code = "image_not_found"


class PathNotFound(NotFound):
    """No such path in the sandbox."""

    code = "path_not_found"


class UserNotFound(NotFound):
    """No such user or group in the sandbox's `/etc/passwd` or `/etc/group`."""

    code = "user_not_found"


class EnvironmentNotFound(NotFound):
    """No such environment, as far as the caller may know."""

    code = "environment_not_found"


class TokenNotFound(NotFound):
    """No API token of that id."""

    code = "token_not_found"


class TunnelNotFound(NotFound):
    """The sandbox has no tunnel to that port."""

    code = "tunnel_not_found"


class AlreadyExists(ShoalError):
    """The name or path is taken."""

    code = "already_exists"


class FailedPrecondition(ShoalError):
    """Right call, wrong moment. `state` is the state that stood in the way."""

    code = "failed_precondition"

    @property
    def state(self) -> str | None:
        value = self.fields.get("state")
        return None if value is None else str(value)


class CommandFailed(FailedPrecondition):
    """A command that was to succeed exited with another code than 0. `stdout`, `stderr`: the ends of its output, as text."""

    code = "command_failed"

    @property
    def returncode(self) -> int:
        return int(self.fields.get("returncode", 1))

    @property
    def stdout(self) -> str:
        return str(self.fields.get("stdout", ""))

    @property
    def stderr(self) -> str:
        return str(self.fields.get("stderr", ""))


class QuotaExceeded(ShoalError):
    """A limit was hit: ask less, or later. `retry_after`: seconds after which the same call may pass, where that is known."""

    code = "quota_exceeded"

    @property
    def retry_after(self) -> float | None:
        value = self.fields.get("retry_after")
        return None if value is None else float(value)


class SandboxEnded(ShoalError):
    """The sandbox has ended. `reason` is one of `states.Reason`; `exit_code` where there was a process."""

    code = "sandbox_ended"

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message, **fields)
        # The machine went, not the work: the same create elsewhere may do.
        self.retryable = self.fields.get("reason") == "node_lost"

    @property
    def reason(self) -> str:
        return str(self.fields.get("reason", "terminated"))

    @property
    def exit_code(self) -> int | None:
        value = self.fields.get("exit_code")
        return None if value is None else int(value)


class DeadlineExceeded(ShoalError):
    """It took longer than the caller allowed."""

    code = "deadline_exceeded"


class Unavailable(ShoalError):
    """A part of the cluster did not answer, and nothing happened: the same call may be made again. With the field `sent` it may have happened:
    where it is not `retryable`, look first, or call again with the `idempotency_key` that a create tells."""

    code = "unavailable"
    retryable = True


class Internal(ShoalError):
    """A defect of Shoal's own."""

    code = "internal"


def error_classes() -> Iterator[type[ShoalError]]:
    """Every concrete class of the tree, parents before children. One without a code of its own is its parent to others, so not among them."""
    pending: list[type[ShoalError]] = [ShoalError]
    while pending:
        current = pending.pop(0)
        if current is not ShoalError and "code" in vars(current):
            yield current
        pending.extend(current.__subclasses__())


def error_from_dict(data: dict[str, Any]) -> ShoalError:
    """The error that `to_dict` described. An unknown code becomes `Internal`, so that a newer peer still makes sense."""
    fields = {k: v for k, v in data.items() if k not in ("code", "message") and isinstance(k, str)}
    message = str(data.get("message", "no message"))
    for cls in error_classes():
        if cls.code == data.get("code"):
            return cls(message, **fields)
    return Internal(f"{data.get('code')}: {message}", **fields)


def _rebuild(data: dict[str, Any]) -> ShoalError:
    return error_from_dict(data)
