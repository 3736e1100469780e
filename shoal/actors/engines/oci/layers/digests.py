"""Digests: `sha256:` and 64 hexadecimal digits."""

from __future__ import annotations

import hashlib
import re

from shoal.model.errors import InvalidRequest

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def hex_of(digest: str) -> str:
    """The digits of a digest, safe as a file's name; `InvalidRequest` (field `image`) for anything else."""
    found = _DIGEST.fullmatch(digest)
    if found is None:
        raise InvalidRequest(f"image: {digest[:80]!r} is no digest; one is sha256: and 64 digits", field="image")
    return found[1]


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
