"""Every error that Shoal raises, classed by what the caller should do about it.

    ShoalError
    ├── InvalidRequest            the call is wrong: fix it
    │   ├── RelativePath              a path in a sandbox must be absolute
    │   ├── IsADirectory              it is a directory, where a file is needed
    │   ├── NotADirectory             it, or a part of its path, is no directory
    │   ├── CommandNotFound           no such program in the sandbox (exit code 127)
    │   └── CommandNotExecutable      it exists but cannot be executed (exit code 126)
    ├── Unauthenticated           no valid credentials: get a token
    ├── PermissionDenied          the caller may not do this
    ├── NotFound                  it does not exist
    │   ├── SandboxNotFound
    │   ├── ProcessNotFound
    │   ├── ImageNotFound
    │   ├── BuildNotFound
    │   ├── RolloutNotFound
    │   ├── PathNotFound
    │   ├── UserNotFound
    │   ├── EnvironmentNotFound
    │   ├── TokenNotFound
    │   ├── NodeNotFound
    │   ├── PoolNotFound
    │   ├── VolumeNotFound
    │   ├── SecretNotFound
    │   └── TunnelNotFound
    ├── AlreadyExists             the name is taken
    ├── FailedPrecondition        right call, wrong state (carries the state)
    │   ├── ImageBuildError           a step of an image's recipe failed
    │   └── CommandFailed             a command exited with another code than 0 (if `check` was set)
    │       └── NoScore                   a command whose score was wanted printed none
    ├── QuotaExceeded             a limit or a full disk: ask for less, or later
    ├── SandboxEnded              carries reason and exit code
    ├── DeadlineExceeded          it took longer than you allowed
    ├── Unavailable               nothing happened: retry the same call; if not `retryable`, check first
    │   └── NoCapacity                there is no room now, and the create may not wait for it
    └── Internal                  a bug in Shoal: report it

Each class has a stable `code`. Between processes and languages, an error is `{"code", "message", ...fields}`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar


class ShoalError(Exception):
    """The base class of all errors. `retryable`: repeating the same call is safe and may succeed."""

    code: ClassVar[str] = "error"
    retryable: bool = False

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.fields: dict[str, Any] = {k: v for k, v in fields.items() if v is not None}

    @property
    def field(self) -> str | None:
        """The argument at fault, if it is one."""
        value = self.fields.get("field")
        return None if value is None else str(value)

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.to_dict(),)

    def to_dict(self) -> dict[str, Any]:
        """The error as a dict: `code`, `message` and its own fields."""
        return {"code": self.code, "message": self.message, **self.fields}


class InvalidRequest(ShoalError):
    """The call is wrong as it stands. `field` names the argument at fault, if it is one."""

    code = "invalid_request"


class RelativePath(InvalidRequest):
    """The path is relative; paths in a sandbox are absolute."""

    code = "relative_path"


class IsADirectory(InvalidRequest):
    """The path is a directory, where the call needs a file."""

    code = "is_a_directory"


class NotADirectory(InvalidRequest):
    """The path, or one on the way to it, is no directory."""

    code = "not_a_directory"


class CommandNotFound(InvalidRequest):
    """The program is not in the sandbox (exit code 127 in a shell)."""

    code = "command_not_found"
    exit_code = 127


class CommandNotExecutable(InvalidRequest):
    """The program exists but cannot be executed (exit code 126 in a shell)."""

    code = "command_not_executable"
    exit_code = 126


class Unauthenticated(ShoalError):
    """The credentials are missing, wrong or expired."""

    code = "unauthenticated"


class PermissionDenied(ShoalError):
    """The caller is known, but may not do this; or in a sandbox, its user may not."""

    code = "permission_denied"


class NotFound(ShoalError):
    """It does not exist, and never did."""

    code = "not_found"


class SandboxNotFound(NotFound):
    """No sandbox has this id or name. For one that has ended, `SandboxEnded` is raised instead."""

    code = "sandbox_not_found"


class ProcessNotFound(NotFound):
    """No process in the sandbox has this id, or it ended long ago."""

    code = "process_not_found"


class ImageNotFound(NotFound):
    """The image is neither on the node nor in a registry."""

    code = "image_not_found"


class BuildNotFound(NotFound):
    """No build of an image has this id, or it ended long ago, or the builder was started anew since."""

    code = "build_not_found"


class RolloutNotFound(NotFound):
    """No rollout in progress has this id, or it ended long ago, or its program has not reported it yet."""

    code = "rollout_not_found"


class PathNotFound(NotFound):
    """The path does not exist in the sandbox."""

    code = "path_not_found"


class UserNotFound(NotFound):
    """The user or group is not in the sandbox's `/etc/passwd` or `/etc/group`."""

    code = "user_not_found"


class EnvironmentNotFound(NotFound):
    """No environment has this name, or the caller may not see it."""

    code = "environment_not_found"


class TokenNotFound(NotFound):
    """No API token has this id."""

    code = "token_not_found"


class NodeNotFound(NotFound):
    """The cluster has no node of this id or name."""

    code = "node_not_found"


class PoolNotFound(NotFound):
    """The environment has no pool of this name."""

    code = "pool_not_found"


class VolumeNotFound(NotFound):
    """The environment has no volume of this name or id."""

    code = "volume_not_found"


class SecretNotFound(NotFound):
    """The environment has no secret of this name, or the secret has no such key."""

    code = "secret_not_found"


class TunnelNotFound(NotFound):
    """The sandbox has no tunnel to this port."""

    code = "tunnel_not_found"


class AlreadyExists(ShoalError):
    """The name or path is taken."""

    code = "already_exists"


class FailedPrecondition(ShoalError):
    """A right call at the wrong moment. `state`: the state that prevented it."""

    code = "failed_precondition"

    @property
    def state(self) -> str | None:
        value = self.fields.get("state")
        return None if value is None else str(value)


class ImageBuildError(FailedPrecondition):
    """A step of an image's recipe failed. `step`: its number, from 1; `text`: what it says; `exit_code`: its command's,
    None if that is not what failed; `log`: the end of what it wrote."""

    code = "image_build_error"

    @property
    def step(self) -> int:
        return int(self.fields.get("step", 0))

    @property
    def text(self) -> str:
        return str(self.fields.get("text", ""))

    @property
    def exit_code(self) -> int | None:
        value = self.fields.get("exit_code")
        return None if value is None else int(value)

    @property
    def log(self) -> str:
        return str(self.fields.get("log", ""))


class CommandFailed(FailedPrecondition):
    """A command with `check` exited with another code than 0. `stdout`, `stderr`: the end of its output, as text."""

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


class NoScore(CommandFailed):
    """The last line of a command's output is no score, or one out of bounds."""

    code = "no_score"


class QuotaExceeded(ShoalError):
    """A limit was hit: ask for less, or later. `retry_after`: seconds until the same call may succeed, if known."""

    code = "quota_exceeded"

    @property
    def retry_after(self) -> float | None:
        value = self.fields.get("retry_after")
        return None if value is None else float(value)


class SandboxEnded(ShoalError):
    """The sandbox has ended. `reason` is one of `states.Reason`; `exit_code` is its `returncode`."""

    code = "sandbox_ended"

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message, **fields)
        # Only the machine was lost: the same create may succeed on another.
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
    """A part of the cluster did not answer, and nothing happened: the same call may be repeated.

    With the field `sent` it may have happened. If it is not `retryable`, check first, or repeat the create with the
    `idempotency_key` in the error.
    """

    code = "unavailable"
    retryable = True


class NoCapacity(Unavailable):
    """No node has room now, and the create was not to wait for it (`wait_for_capacity=False`). Nothing was created. Not
    `retryable`: no transport repeats it by itself."""

    code = "no_capacity"
    retryable = False


class Internal(ShoalError):
    """A bug in Shoal."""

    code = "internal"


def error_classes() -> Iterator[type[ShoalError]]:
    """Every class with a code of its own, parents before children."""
    pending: list[type[ShoalError]] = [ShoalError]
    while pending:
        current = pending.pop(0)
        if current is not ShoalError and "code" in vars(current):
            yield current
        pending.extend(current.__subclasses__())


def error_from_dict(data: dict[str, Any]) -> ShoalError:
    """The error that `to_dict` described. An unknown code, as from a newer peer, becomes `Internal`."""
    fields = {k: v for k, v in data.items() if k not in ("code", "message") and isinstance(k, str)}
    message = str(data.get("message", "no message"))
    for cls in error_classes():
        if cls.code == data.get("code"):
            return cls(message, **fields)
    return Internal(f"{data.get('code')}: {message}", **fields)


def _rebuild(data: dict[str, Any]) -> ShoalError:
    return error_from_dict(data)
