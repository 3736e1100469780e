"""Checks of requests before anything is sent; each error names the field and the remedy."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from shoal.model import errors, ids
from shoal.model.validate import MAX_START_BYTES, MAX_START_ITEMS, check_command, check_environment_variables, text_size

MAX_PATH = 4095
MAX_OUTPUT = 256 << 20
MAX_SECONDS = 365 * 86400
MAX_OFFSET = (1 << 63) - 1
LIMITS = ("nofile", "nproc", "fsize", "core", "cpu", "stack")

PathLike = str | os.PathLike[str]
JsonPath = str | dict[str, str]


def argv(value: Sequence[str]) -> list[str]:
    """A command line of at least one argument, 128 KiB each at most; how much in all, the kernel decides."""
    if isinstance(value, str | bytes):
        raise errors.InvalidRequest(
            "argv must be a list of strings, not one: for a shell's line use ['sh', '-c', line]", field="argv"
        )
    args = list(value)
    if not args:
        raise errors.InvalidRequest("argv is empty: name the program to run", field="argv")
    check_command("argv", args, MAX_START_ITEMS, MAX_START_BYTES)
    return args


def env(value: Mapping[str, str | None]) -> dict[str, str | None]:
    """Environment variables; None removes one."""
    if not isinstance(value, Mapping):
        raise errors.InvalidRequest(f"env must map names to strings, not be a {type(value).__name__}", field="env")
    check_environment_variables("env", value, MAX_START_BYTES)
    return dict(value)


def path(value: PathLike, field: str = "path") -> JsonPath:
    """An absolute path in its JSON form: a string, or base64 if it is not UTF-8 (see `os.fsdecode`)."""
    name = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(name, str):
        raise errors.InvalidRequest(
            f"{field} must be a string, not {type(name).__name__}: os.fsdecode decodes bytes", field=field
        )
    if not name:
        raise errors.InvalidRequest(f"{field} is empty: give an absolute path", field=field)
    if "\0" in name:
        raise errors.InvalidRequest(f"{field} holds a NUL character, which no path can", field=field)
    if not name.startswith("/"):
        raise errors.RelativePath(
            f"{field} is relative: {name!r:.200}; give an absolute path, which starts with '/'", field=field
        )
    return _bytes_of(name, field)


def name(value: str, field: str) -> JsonPath:
    """A file's name, or none, in its JSON form."""
    if "/" in value:
        raise errors.InvalidRequest(f"{field} is no name: give one without '/'", field=field)
    return _bytes_of(value, field)


def _bytes_of(name: str, field: str) -> JsonPath:
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise errors.InvalidRequest(
            f"{field} is not valid Unicode: decode bytes with os.fsdecode", field=field
        ) from None
    if len(raw) > MAX_PATH:
        raise errors.InvalidRequest(f"{field} is {len(raw)} bytes long, at most {MAX_PATH} are possible", field=field)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(raw).decode("ascii")}


def directory(value: PathLike) -> JsonPath:
    """A working directory."""
    return path(value, "workdir")


def user(value: str) -> str:
    """`""`, `name`, `uid`, `uid:gid` or `name:group`. Whether it exists, the agent checks."""
    return short("user", value)


def short(field: str, value: str) -> str:
    """A string of at most 256 bytes."""
    if (size := text_size(field, value)) > 256:
        raise errors.InvalidRequest(f"{field} has {size} bytes, more than 256: shorten it", field=field)
    return value


def process_id(value: object) -> str:
    """A process id: `p-` and up to 32 lower-case letters and digits."""
    if not isinstance(value, str) or not ids.PROCESS.fullmatch(value):
        raise errors.InvalidRequest(
            f"process id {value!r:.80} is malformed: p- and 1 to 32 lower-case letters and digits", field="id"
        )
    return value


def whole(value: int, field: str, low: int, high: int) -> int:
    """A whole number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise errors.InvalidRequest(f"{field} must be a whole number, not {type(value).__name__}", field=field)
    if not low <= value <= high:
        raise errors.InvalidRequest(f"{field} must be {low} to {high}, not {value}", field=field)
    return value


def size(rows: int, cols: int) -> dict[str, int]:
    """A terminal's size."""
    return {"rows": whole(rows, "rows", 1, 65535), "cols": whole(cols, "cols", 1, 65535)}


def milliseconds(value: float, field: str) -> int:
    """Seconds (0 to a year) as milliseconds, rounded up, so that only 0 gives 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise errors.InvalidRequest(f"{field} must be a number of seconds, not {type(value).__name__}", field=field)
    if not 0 <= value <= MAX_SECONDS:  # NaN too fails this
        raise errors.InvalidRequest(f"{field} must be 0 to {MAX_SECONDS} seconds, not {value}", field=field)
    return math.ceil(value * 1000)


def limits(value: Mapping[str, int]) -> dict[str, int]:
    """Resource limits by name."""
    for name, amount in value.items():
        if name not in LIMITS:
            raise errors.InvalidRequest(f"limits has no {name!r:.80}; possible: {', '.join(LIMITS)}", field="limits")
        whole(amount, f"limits[{name}]", 0, MAX_OFFSET)
    return dict(value)


def flag(value: object, field: str) -> bool:
    """True or False, and nothing merely truthy."""
    if value is not True and value is not False:
        raise errors.InvalidRequest(f"{field} must be True or False, not {value!r:.80}", field=field)
    return value


def mode(value: int | None) -> int | None:
    """A file's mode; None for the default."""
    return None if value is None else whole(value, "mode", 0, 0o7777)


def content(value: Any, field: str) -> memoryview:
    """Any bytes-like object."""
    try:
        return memoryview(value).cast("B")
    except TypeError:
        raise errors.InvalidRequest(
            f"{field} must be bytes, not {type(value).__name__}: encode text first", field=field
        ) from None
