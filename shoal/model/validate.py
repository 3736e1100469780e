"""Checks a sandbox's spec out of a caller's hand: every error names the field and the remedy."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shoal.model.errors import InvalidRequest
from shoal.model.ids import NAME
from shoal.model.spec import SandboxSpec

if TYPE_CHECKING:
    from shoal.model.settings import Limits

MAX_ARGV_ITEMS = 4096
MAX_ARGV_ITEM = 128 * 1024 - 1  # the kernel's MAX_ARG_STRLEN counts the NUL at its end
MAX_ARGV_BYTES = 1536 * 1024
MAX_TAGS = 64
MAX_REGION = 256
MAX_KEY = 128
"""Characters of an idempotency key."""

KEY = r"[!-~]([ -~]*[!-~])?"
"""An idempotency key: what a header of HTTP can carry as it is."""

MAX_CORES = 1024.0
MAX_MEMORY = 16 * 1024 * 1024  # 16 TiB in MiB
MIN_MEMORY = 16  # MiB: less does not hold the agent and one process


def check_spec(spec: SandboxSpec, limits: Limits | None) -> None:
    """Raises `InvalidRequest` for the first thing wrong with `spec`; does not look at what nodes there are. `limits`: None where the cluster's
    are not known."""
    longest = math.inf if limits is None else limits.timeout
    check_text("image", spec.image, "a reference such as 'shoal/base' or 'python:3.12'")
    check_resources(spec, limits)
    check_command("command", spec.command)
    check_environment_variables("env", spec.env)
    if spec.name is not None:
        check_name("name", spec.name)
    check_name("environment", spec.environment)
    check_tags(spec.tags)
    if spec.workdir is not None:
        check_text("workdir", spec.workdir, "an absolute path such as '/work'")
        if not spec.workdir.startswith("/"):
            raise InvalidRequest(f"workdir: {spec.workdir!r:.200} is relative; give an absolute path", field="workdir")
    if spec.user != "":
        check_text("user", spec.user, "a name, 'uid' or 'uid:gid'")
    check_number("timeout", spec.timeout, 0, longest, "seconds")
    if spec.idle_timeout is not None:
        check_number("idle_timeout", spec.idle_timeout, 0, longest, "seconds")
    if not isinstance(spec.pty, bool):
        raise InvalidRequest(f"pty: {spec.pty!r:.80} is neither True nor False", field="pty")
    value: str | None
    for field, value, choices in (
        ("network", spec.network, ("default", "none")),
        ("runtime", spec.runtime, ("runc", "runsc")),
    ):
        if value not in choices:
            raise InvalidRequest(f"{field}: {value!r:.80} is none of {', '.join(choices)}", field=field)
    if spec.region is not None:
        check_text("region", spec.region, "a short text")
        if len(spec.region) > MAX_REGION:
            raise InvalidRequest(
                f"region: {len(spec.region)} characters are too many; use at most {MAX_REGION}", field="region"
            )
    if spec.idempotency_key is not None:
        check_key(spec.idempotency_key)


def check_resources(spec: SandboxSpec, limits: Limits | None) -> None:
    """Each amount by itself, and no request above its limit."""
    r = spec.resources
    check_number("cpu", r.cpu_request, 0, MAX_CORES, "cores")
    check_number("cpu", r.cpu_limit, 0, MAX_CORES, "cores")
    check_number("memory", r.memory_request, 0, MAX_MEMORY, "MiB", whole=True)
    check_number("memory", r.memory_limit, MIN_MEMORY - 1, MAX_MEMORY, "MiB", whole=True)
    check_number("disk", r.disk, 0, MAX_MEMORY * 64, "MiB", whole=True)
    check_number("pids", r.pids, 1, math.inf if limits is None else limits.pids, "processes", whole=True)
    if r.gpu != 0:
        check_number("gpu", r.gpu, 0, 64, "devices", whole=True)
    if r.cpu_request > r.cpu_limit:
        raise InvalidRequest(
            f"cpu: the request {r.cpu_request} is above the limit {r.cpu_limit}; lower it", field="cpu"
        )
    if r.memory_request > r.memory_limit:
        raise InvalidRequest(
            f"memory: the request {r.memory_request} MiB is above the limit {r.memory_limit} MiB; lower it",
            field="memory",
        )


def check_number(field: str, value: Any, above: float, most: float, unit: str, *, whole: bool = False) -> None:
    """`value` is a number with `above` < value ≤ `most`."""
    kind = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise InvalidRequest(f"{field}: {value!r:.80} is not {kind} of {unit}", field=field)
    if not above < value <= min(most, sys.float_info.max):
        least = f"of at least {above + 1:.0f}" if whole else f"above {above:g}"
        bound = "" if most == math.inf else f", at most {most:.15g}"
        # Python refuses to write out whole numbers of thousands of digits.
        told = "a number of hundreds of digits" if sys.float_info.max < abs(value) < math.inf else value
        raise InvalidRequest(f"{field}: {told} is out of range; give {kind} of {unit} {least}{bound}", field=field)


def check_name(field: str, value: Any) -> None:
    """`value` is a name of a sandbox or an environment."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise InvalidRequest(
            f"{field}: {value!r:.80} is no name; use 1 to 64 letters, digits, dots, dashes and underscores", field=field
        )


def check_key(value: Any) -> None:
    """`value` is an idempotency key."""
    if not isinstance(value, str) or len(value) > MAX_KEY or not re.fullmatch(KEY, value):
        raise InvalidRequest(
            f"idempotency_key: {value!r:.200} is none; give 1 to {MAX_KEY} printable ASCII characters, with no space at the ends",
            field="idempotency_key",
        )


def check_text(field: str, value: Any, remedy: str) -> None:
    """`value` is a string, not empty, without NUL and valid UTF-8."""
    if not isinstance(value, str) or not value:
        raise InvalidRequest(f"{field}: {value!r:.80} is not usable; give {remedy}", field=field)
    if "\0" in value:
        raise InvalidRequest(f"{field}: it holds a NUL character; remove it", field=field)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(
            f"{field}: it is not valid UTF-8; encode what is binary, or write it to a file", field=field
        ) from None


def check_command(field: str, argv: tuple[str, ...]) -> None:
    """An argument vector, which may be empty here."""
    if len(argv) > MAX_ARGV_ITEMS:
        raise InvalidRequest(
            f"{field}: {len(argv)} arguments are too many; pass at most {MAX_ARGV_ITEMS}, or write them to a file",
            field=field,
        )
    total = 0
    for position, item in enumerate(argv):
        if not isinstance(item, str):
            raise InvalidRequest(f"{field}: argument {position} is {type(item).__name__}, not a string", field=field)
        if position == 0 or item:
            check_text(field, item, "a program and its arguments")
        size = len(item.encode())
        total += size
        if size > MAX_ARGV_ITEM:
            raise InvalidRequest(
                f"{field}: argument {position} has {size} bytes, more than {MAX_ARGV_ITEM}; write it to a file or to stdin",
                field=field,
            )
    if total > MAX_ARGV_BYTES:
        raise InvalidRequest(
            f"{field}: {total} bytes in all, more than {MAX_ARGV_BYTES}; write them to a file or to stdin", field=field
        )


def check_environment_variables(field: str, env: Mapping[str, str]) -> None:
    """Environment variables: names not empty and without '=', all within the kernel's bounds."""
    total = 0
    for name, value in env.items():
        check_text(field, name, "names such as 'PATH'")
        if "=" in name:
            raise InvalidRequest(f"{field}: the name {name!r:.80} holds '='; remove it", field=field)
        if not isinstance(value, str):
            raise InvalidRequest(f"{field}: {name[:80]} is {type(value).__name__}, not a string", field=field)
        if value:
            check_text(field, value, "text")
        size = len(name.encode()) + len(value.encode()) + 2
        total += size
        if size > MAX_ARGV_ITEM:
            raise InvalidRequest(
                f"{field}: {name[:80]} has {size} bytes, more than {MAX_ARGV_ITEM}; write it to a file", field=field
            )
    if total > MAX_ARGV_BYTES:
        raise InvalidRequest(
            f"{field}: {total} bytes in all, more than {MAX_ARGV_BYTES}; write them to a file", field=field
        )


def check_tags(tags: Mapping[str, str]) -> None:
    """Up to 64 tags; keys and values are text of at most 256 characters."""
    if len(tags) > MAX_TAGS:
        raise InvalidRequest(f"tags: {len(tags)} are too many; use at most {MAX_TAGS}", field="tags")
    for key, value in tags.items():
        check_text("tags", key, "keys that are text")
        if not isinstance(value, str):
            raise InvalidRequest(f"tags: {key[:80]} is {type(value).__name__}, not a string", field="tags")
        if value:
            check_text("tags", value, "text")
        if len(key) > 256 or len(value) > 256:
            raise InvalidRequest(
                f"tags: {key[:32]!r} or its value is longer than 256 characters; shorten it", field="tags"
            )
