"""Values sent to and received from an agent. Replies may be hostile: the type and bound of every field is checked."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from shoal.model import errors
from shoal.wire import checks

EntryKind = Literal["file", "dir", "link", "other"]
_ENTRY_KINDS = ("file", "dir", "link", "other")
_WATCH_KINDS = ("created", "modified", "removed", "moved")
_MAX_NAME = 255
_MAX_TEXT = 32 << 10
"""Longest path in a reply, in characters: trees can be deeper than one system call can name."""

_MAX_TIME_US = 10 * checks.MAX_SECONDS * 1_000_000


@dataclass(frozen=True, slots=True)
class Start:
    """A process to start.

    `id`: chosen by the caller (`ids.new_process_id()`), so that sending the same start again never starts it twice.
    `env`: added to the container's; None removes a variable. `workdir`: absolute; None: the container's. `user`:
    `name`, `uid`, `uid:gid` or `name:group`; `""`: the container's. `timeout_s`: seconds until its whole tree is
    killed; 0: no limit. `limits`: `nofile`, `nproc`, `fsize`, `core`, `cpu`, `stack`.
    """

    id: str
    argv: Sequence[str]
    env: Mapping[str, str | None] = field(default_factory=dict)
    workdir: checks.PathLike | None = None
    user: str = ""
    timeout_s: float = 0
    limits: Mapping[str, int] | None = None

    def request(self, op: str) -> dict[str, Any]:
        """The start as a request; `InvalidRequest`."""
        request: dict[str, Any] = {"op": op, "id": checks.process_id(self.id), "argv": checks.argv(self.argv)}
        if self.env != {}:
            request["env"] = checks.env(self.env)
        if self.workdir is not None:
            request["workdir"] = checks.directory(self.workdir)
        if self.user != "":
            request["user"] = checks.user(self.user)
        if self.timeout_s != 0:
            request["timeout_ms"] = checks.milliseconds(self.timeout_s, "timeout_s")
        if self.limits:
            request["limits"] = checks.limits(self.limits)
        return request


@dataclass(frozen=True, slots=True)
class Terminal:
    """A process's terminal. `echo`: whether it repeats its input in its output. `term`: the process's variable TERM;
    None: the container's, else `xterm`.
    """

    rows: int = 24
    cols: int = 80
    echo: bool = True
    term: str | None = None

    def request(self) -> dict[str, Any]:
        """The terminal as a part of a start; `InvalidRequest`."""
        request: dict[str, Any] = checks.size(self.rows, self.cols)
        if not checks.flag(self.echo, "echo"):
            request["echo"] = False
        if self.term is not None:
            checks.short("term", self.term)
        return request


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended. `exit`: its exit code, `-n` for signal n. `truncated`: there was more output than was kept."""

    id: str
    exit: int
    stdout: bytes
    stderr: bytes
    timed_out: bool
    truncated: bool
    duration_s: float


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended. `exit`: its exit code, `-n` for signal n."""

    exit: int
    timed_out: bool
    duration_s: float


@dataclass(frozen=True, slots=True)
class Entry:
    """A directory entry. Names that are not UTF-8 carry surrogate escapes (`os.fsencode` decodes them)."""

    name: str
    path: str
    kind: EntryKind
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    target: str | None


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """A change. `kind`: `created`, `modified`, `removed`, `moved` (to `to`), or `overflow`: some were dropped."""

    kind: str
    path: str
    to: str | None


def run_result(reply: dict[str, Any], process_id: str, stdout: bytes, stderr: bytes) -> RunResult:
    """The result of the run `process_id`."""
    if reply.get("id") != process_id:
        raise _malformed("id", "is another process's")
    return RunResult(
        process_id,
        _exit_code(reply),
        stdout,
        stderr,
        boolean(reply, "timed_out"),
        boolean(reply, "truncated"),
        whole(reply, "duration_us", 0, _MAX_TIME_US) / 1e6,
    )


def exit_of(reply: dict[str, Any]) -> Exit:
    """The answer to `wait`."""
    return Exit(_exit_code(reply), boolean(reply, "timed_out"), whole(reply, "duration_us", 0, _MAX_TIME_US) / 1e6)


def entry(data: object) -> Entry:
    """One file's entry."""
    if type(data) is not dict:
        raise _malformed("entry", "is not an object")
    kind = data.get("kind")
    if kind not in _ENTRY_KINDS:
        raise _malformed("kind", "is unknown")
    path = absolute(data, "path")
    name = _name(data, path)
    return Entry(
        name,
        path,
        cast(EntryKind, kind),
        whole(data, "size", 0, checks.MAX_OFFSET),
        whole(data, "mode", 0, 0o177777),
        whole(data, "uid", 0, 0xFFFFFFFF),
        whole(data, "gid", 0, 0xFFFFFFFF),
        whole(data, "mtime_ns", -checks.MAX_OFFSET, checks.MAX_OFFSET),
        path_text(data, "target") if kind == "link" else None,
    )


def entries(event: dict[str, Any]) -> list[Entry]:
    """The entries in one event of `list`."""
    found = event.get("entries")
    if type(found) is not list:
        raise _malformed("entries", "is not a list")
    return [entry(item) for item in found]


def watch_event(event: dict[str, Any], watched: str) -> WatchEvent:
    """One event of `watch`."""
    if event.get("overflow") is True:
        return WatchEvent("overflow", watched, None)
    kind = event.get("kind")
    if type(kind) is not str or kind not in _WATCH_KINDS:
        raise _malformed("kind", "is unknown")
    return WatchEvent(kind, absolute(event, "path"), absolute(event, "to") if kind == "moved" else None)


def process(data: object) -> dict[str, Any]:
    """One row of `ps`."""
    if type(data) is not dict:
        raise _malformed("process", "is not an object")
    argv = data.get("argv")
    if type(argv) is not list or not all(type(arg) is str for arg in argv):
        raise _malformed("argv", "is not a list of strings")
    running = boolean(data, "running")
    return {
        "id": text(data, "id"),
        "pid": whole(data, "pid", 0, 1 << 31),
        "argv": [arg.encode(errors="replace").decode() for arg in argv],
        "started_ms": whole(data, "started_ms", 0, checks.MAX_OFFSET),
        "running": running,
        "exit": None if running else _exit_code(data),
    }


def whole(data: dict[str, Any], field: str, low: int, high: int) -> int:
    """A whole number from a reply."""
    value = data.get(field)
    if type(value) is not int or not low <= value <= high:
        raise _malformed(field, f"is not a whole number from {low} to {high}")
    return value


def boolean(data: dict[str, Any], field: str) -> bool:
    """A boolean from a reply."""
    value = data.get(field)
    if type(value) is not bool:
        raise _malformed(field, "is not true or false")
    return value


def text(data: dict[str, Any], field: str) -> str:
    """A string from a reply: short, valid Unicode, without NUL."""
    value = data.get(field)
    if type(value) is not str or len(value) > _MAX_TEXT or "\0" in value or not _is_unicode(value):
        raise _malformed(field, "is not a short string")
    return value


def path_text(data: dict[str, Any], field: str) -> str:
    """A path or name from a reply, as a string or base64; non-UTF-8 bytes become surrogate escapes."""
    value = data.get(field)
    if type(value) is not dict:
        return text(data, field)
    coded = value.get("b64")
    if type(coded) is not str or len(coded) > 2 * _MAX_TEXT:
        raise _malformed(field, "is neither a string nor base64")
    try:
        raw = base64.b64decode(coded, validate=True)
    except (binascii.Error, ValueError):
        raise _malformed(field, "is not base64") from None
    if b"\0" in raw:
        raise _malformed(field, "holds a NUL")
    return raw.decode("utf-8", "surrogateescape")


def absolute(data: dict[str, Any], field: str) -> str:
    """An absolute path from a reply."""
    value = path_text(data, field)
    if not value.startswith("/"):
        raise _malformed(field, "is not an absolute path")
    return value


def _name(data: dict[str, Any], path: str) -> str:
    # A caller may join it to a local path, so it must be one plain name.
    name = path_text(data, "name")
    if name == path == "/":
        return name
    if not name or name in (".", "..") or "/" in name or len(name) > _MAX_NAME:
        raise _malformed("name", "is not a plain file name")
    return name


def _exit_code(data: dict[str, Any]) -> int:
    return whole(data, "exit", -255, 255)


def _is_unicode(value: str) -> bool:
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _malformed(field: str, why: str) -> errors.Internal:
    return errors.Internal(f"malformed answer from the sandbox: {field} {why}")
