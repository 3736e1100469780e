"""Cursors of listings: after which sandbox the next page begins, as a text that says nothing to whoever passes it on."""

from __future__ import annotations

import base64
import binascii
import json
import math

from shoal.model.errors import InvalidRequest
from shoal.model.ids import SANDBOX

MAX_LENGTH = 128


def encode_cursor(place: tuple[float, str]) -> str:
    """The cursor of the page after a place: (created_at, id) of a sandbox, as in `Listing.before`."""
    plain = json.dumps([float(place[0]), place[1]], separators=(",", ":"))
    return base64.urlsafe_b64encode(plain.encode()).rstrip(b"=").decode("ascii")


def decode_cursor(cursor: str) -> tuple[float, str]:
    """(created_at, id) of the sandbox that a page comes after; `InvalidRequest`."""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        value = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        created_at, sandbox_id = value
        if (
            type(created_at) is float
            and math.isfinite(created_at)
            and isinstance(sandbox_id, str)
            and SANDBOX.fullmatch(sandbox_id)
        ):
            return created_at, sandbox_id
    except (ValueError, TypeError, binascii.Error, RecursionError):
        pass  # said below
    raise InvalidRequest("cursor: this is no cursor; pass on `next_cursor` as it came", field="cursor")
