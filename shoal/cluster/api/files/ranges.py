"""Which part of a file a request asks for, and whether the file is still the one that it means (RFC 9110). Pure.

One range is served; to several the answer is the whole file. Entity tags are weak: they are made of size and time of
change, and may miss a change within the clock's resolution.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime

from shoal.cluster.api.request.problems import Refused

_RANGE = re.compile(r"bytes=[ \t]*(\d{0,19})-(\d{0,19})[ \t]*")


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes `begin` to `end` (not included) of a file; `whole`: no range was asked for."""

    begin: int
    end: int
    whole: bool

    @property
    def length(self) -> int:
        return self.end - self.begin


def entity_tag(size: int, mtime_ns: int) -> str:
    """The tag of one state of a file."""
    return f'W/"{mtime_ns:x}-{size:x}"'


def http_date(mtime_ns: int) -> str:
    """A time in HTTP's format, in whole seconds."""
    return formatdate(min(max(0, mtime_ns // 10**9), 253402300799), usegmt=True)


def not_modified(headers: Mapping[str, str], tag: str, mtime_ns: int) -> bool:
    """Whether the client has it already (`If-None-Match`, else `If-Modified-Since`)."""
    known = headers.get("if-none-match")
    if known is not None:
        return known.strip() == "*" or _opaque(tag) in map(_opaque, known.split(","))
    since = _seconds(headers.get("if-modified-since"))
    return since is not None and mtime_ns // 10**9 <= since


def part_of(headers: Mapping[str, str], size: int, tag: str, mtime_ns: int) -> Part:
    """The part that is asked for of a file of `size` bytes; `Refused` (416) if the file has none of it."""
    whole = Part(0, size, True)
    asked = headers.get("range")
    if asked is None or not _still(headers.get("if-range"), tag, mtime_ns):
        return whole
    match = _RANGE.fullmatch(asked)
    if match is None or match[1] == match[2] == "":
        return whole  # several, another unit, or malformed: as if none was asked for
    if match[1] == "":
        begin, end = max(0, size - int(match[2])), size
    else:
        begin, end = int(match[1]), size if match[2] == "" else min(size, int(match[2]) + 1)
        if match[2] != "" and int(match[2]) < begin:
            return whole
    if begin >= end:
        raise Refused(
            416,
            f"range: the file has {size} bytes; ask for some of them",
            {"Content-Range": f"bytes */{size}"},
            size=size,
        )
    return Part(begin, end, False)


def _still(condition: str | None, tag: str, mtime_ns: int) -> bool:
    """Whether `If-Range` holds. The tag is compared though it is weak: here a file's owner is also its reader."""
    if condition is None:
        return True
    if '"' in condition:
        return _opaque(condition) == _opaque(tag)
    return _seconds(condition) == mtime_ns // 10**9


def _opaque(tag: str) -> str:
    return tag.strip().removeprefix("W/")


def _seconds(date: str | None) -> float | None:
    if date is None:
        return None
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None
