"""Paths in a volume, and where they are in the sandbox through which its files are read and written from outside."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager

from shoal.model.errors import InvalidRequest, ShoalError, error_from_dict

DATA = "/volume"
"""Where the volume is in that sandbox."""

OTHER = "/other"
"""Where another one is there, to which files are copied."""

_TOP = re.compile(rf"(?<![^\s'\"(])(?:{DATA}|{OTHER})(?:/|(?![\w.-]))")


def inside(path: str, top: str = DATA) -> str:
    """The path in that sandbox; a slash at its end stays."""
    if ".." in path.split("/"):
        raise InvalidRequest(f"path: {path!r:.200} holds '..'; write it without", field="path")
    plain = posixpath.normpath(f"/{path}").lstrip("/")
    found = posixpath.join(top, plain) if plain else top
    return f"{found}/" if path.endswith("/") else found


def outside(text: str) -> str:
    """`text` with paths in that sandbox as paths in the volume: `/data/a`, not `/volume/data/a`."""
    return _TOP.sub("/", text)


@contextmanager
def errors_name_the_volumes_paths() -> Iterator[None]:
    """Around calls to that sandbox: its user has never heard of where it has the volume."""
    try:
        yield
    except ShoalError as error:
        if error.field == "local":
            raise
        raise error_from_dict({**error.to_dict(), "message": outside(error.message)}) from None
