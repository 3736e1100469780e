"""Image references."""

from __future__ import annotations

import re

from shoal.model.errors import InvalidRequest

# As loose as is safe in a URL: the engine decides in the end.
_REFERENCE = re.compile(
    r"(?:[A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]{1,5})?/)?"  # registry
    r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*"  # name
    r"(?::[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?"  # tag
    r"(?:@sha256:[0-9a-f]{64})?"
    r"|sha256:[0-9a-f]{64}"
)
_LENGTH, _SHOWN = 512, 80


def check_reference(reference: str, field: str = "image") -> None:
    """Raises `InvalidRequest` for an invalid image reference, which the argument `field` gave."""
    if len(reference) > _LENGTH or not _REFERENCE.fullmatch(reference):
        raise InvalidRequest(
            f"{field}: {reference[:_SHOWN]!r} is no image reference; write it as [registry/]name[:tag], in lower case",
            field=field,
        )
