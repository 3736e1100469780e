"""Checks of single values that a caller gave: every error names the field and the remedy."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from shoal.model.errors import InvalidRequest
from shoal.model.ids import NAME

MAX_ARGV_ITEMS = 4096
"""Arguments, and variables, of a sandbox's spec, which the cluster stores."""
MAX_ARGV_BYTES = 1536 * 1024
"""Bytes of a spec's arguments, and of its variables."""
MAX_ARGV_ITEM = 128 * 1024 - 1
"""Bytes of one argument or environment variable: the kernel's 128 KiB less the NUL at its end."""
MAX_START_ITEMS = 1 << 18
"""Arguments, and variables, of a process: more than any kernel takes, which counts eight bytes for each."""
MAX_START_BYTES = 6 << 20
"""Bytes of a process's arguments, and of its variables: the most that any kernel takes. Most take 2 MiB of both
together (a quarter of the stack's limit), which the sandbox itself finds out."""
MAX_TAGS = 64
MAX_REGIONS = 16
MAX_TIMEOUT = 365 * 86400.0
"""Seconds of any timeout."""
MAX_KEY = 128
"""Characters of an idempotency key."""

KEY = r"[!-~]([ -~]*[!-~])?"
"""An idempotency key: what a header of HTTP can carry as it is."""


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
            f"idempotency_key: {value!r:.200} is not 1 to {MAX_KEY} printable ASCII characters, without outer spaces",
            field="idempotency_key",
        )


def text_size(field: str, value: Any, what: str = "it") -> int:
    """The size of a string in UTF-8.

    `InvalidRequest` for what is no string, holds a NUL character, or is not valid Unicode.

    `what`: which part of the field it is, for the message.
    """
    if not isinstance(value, str):
        raise InvalidRequest(f"{field}: {what} is {type(value).__name__}; give a string", field=field)
    if "\0" in value:
        raise InvalidRequest(f"{field}: {what} holds a NUL character; remove it", field=field)
    if value.isascii():
        return len(value)
    try:
        return len(value.encode())
    except UnicodeEncodeError:
        raise InvalidRequest(
            f"{field}: {what} is not valid UTF-8; encode what is binary, or write it to a file", field=field
        ) from None


def check_text(field: str, value: Any, remedy: str) -> None:
    """`value` is a string, not empty, without NUL and valid UTF-8."""
    if not value:
        raise InvalidRequest(f"{field}: {value!r:.80} is not usable; give {remedy}", field=field)
    text_size(field, value)


def check_absolute(field: str, value: str) -> None:
    """`value` is an absolute path."""
    if not value.startswith("/"):
        raise InvalidRequest(f"{field}: {value!r:.200} is relative; give an absolute path", field=field)


def check_command(
    field: str, argv: Sequence[str], most_items: int = MAX_ARGV_ITEMS, most_bytes: int = MAX_ARGV_BYTES
) -> None:
    """An argument vector within bounds. It may be empty, but the program's name may not."""
    if len(argv) > most_items:
        raise InvalidRequest(
            f"{field}: {len(argv)} arguments are too many; pass at most {most_items}, or write them to a file",
            field=field,
        )
    if argv and not argv[0]:
        raise InvalidRequest(f"{field}: it begins with {argv[0]!r:.80}; name the program to run", field=field)
    total = 0
    for position, item in enumerate(argv):
        size = text_size(field, item, f"argument {position}")
        if size > MAX_ARGV_ITEM:
            raise InvalidRequest(
                f"{field}: argument {position} has {size} bytes, more than {MAX_ARGV_ITEM}; use a file or stdin",
                field=field,
            )
        total += size + 1
    if total > most_bytes:
        raise InvalidRequest(
            f"{field}: {total} bytes in all, more than {most_bytes}; write them to a file or to stdin", field=field
        )


def check_environment_variables(field: str, env: Mapping[str, str | None], most_bytes: int = MAX_ARGV_BYTES) -> None:
    """Environment variables within bounds: names not empty and without '='. None removes one."""
    total = 0
    for name, value in env.items():
        size = text_size(field, name, "a name")
        if not name or "=" in name:
            raise InvalidRequest(f"{field}: the name {name!r:.80} is empty or holds '='; give another", field=field)
        if value is not None:
            size += text_size(field, value, name[:80])
        if size >= MAX_ARGV_ITEM:
            raise InvalidRequest(
                f"{field}: {name[:80]} has {size} bytes with its name, more than {MAX_ARGV_ITEM - 1}; use a file",
                field=field,
            )
        total += size + 2
    if total > most_bytes:
        raise InvalidRequest(
            f"{field}: {total} bytes in all, more than {most_bytes}; write them to a file", field=field
        )


def check_regions(field: str, regions: Sequence[str]) -> None:
    """Regions in the order of preference, each once."""
    twice = next((each for position, each in enumerate(regions) if each in regions[:position]), None)
    if twice is not None:
        raise InvalidRequest(f"{field}: {twice!r} is listed twice; list each once, the preferred first", field=field)


def check_tags(field: str, tags: Mapping[str, str]) -> None:
    """Up to 64 tags; keys and values are text of at most 256 characters."""
    if len(tags) > MAX_TAGS:
        raise InvalidRequest(f"{field}: {len(tags)} are too many; use at most {MAX_TAGS}", field=field)
    for key, value in tags.items():
        check_text(field, key, "keys that are text")
        text_size(field, value, key[:80])
        if len(key) > 256 or len(value) > 256:
            raise InvalidRequest(
                f"{field}: {key[:32]!r} or its value is longer than 256 characters; shorten it", field=field
            )
