"""Cursors of listings as opaque text."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from typing import Any

from shoal.model.errors import InvalidRequest
from shoal.model.ids import SANDBOX
from shoal.model.info import PageCursor, SortedCursor

MAX_LENGTH = 128
MAX_SORTED = 1200
"""Of a listing that may be sorted by a text."""


def encode_cursor(cursor: SortedCursor) -> str:
    """The text for `Listing.before`."""
    plain = json.dumps([float(cursor[0]), *cursor[1:]], separators=(",", ":"))
    return base64.urlsafe_b64encode(plain.encode()).rstrip(b"=").decode("ascii")


def decode_cursor(cursor: str, ids: re.Pattern[str] = SANDBOX) -> PageCursor:
    """What `encode_cursor` was given, with an id of this kind; `InvalidRequest` for any other text."""
    found = _decoded(cursor, ids)
    if len(found) != 2:
        raise _no_cursor()
    return found


def decode_sorted(cursor: str) -> SortedCursor:
    """The same of a listing of sandboxes in whichever order."""
    return _decoded(cursor, SANDBOX)


def _decoded(cursor: str, ids: re.Pattern[str]) -> SortedCursor:
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        value = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        created_at, last_id, *rest = value
        if _is_number(created_at) and isinstance(last_id, str) and ids.fullmatch(last_id):
            if not rest:
                return created_at, last_id
            if len(rest) == 1 and (isinstance(rest[0], str) or _is_number(rest[0])):
                return created_at, last_id, rest[0]
    except (ValueError, TypeError, binascii.Error, RecursionError):
        pass  # said below
    raise _no_cursor()


def _is_number(value: Any) -> bool:
    return type(value) is float and math.isfinite(value)


def _no_cursor() -> InvalidRequest:
    return InvalidRequest("cursor: this is no cursor; pass on `next_cursor` as it came", field="cursor")
