"""Cursors of listings as opaque text."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re

from shoal.model.errors import InvalidRequest
from shoal.model.ids import SANDBOX
from shoal.model.info import PageCursor

MAX_LENGTH = 128


def encode_cursor(cursor: PageCursor) -> str:
    """The text for `Listing.before`."""
    plain = json.dumps([float(cursor[0]), cursor[1]], separators=(",", ":"))
    return base64.urlsafe_b64encode(plain.encode()).rstrip(b"=").decode("ascii")


def decode_cursor(cursor: str, ids: re.Pattern[str] = SANDBOX) -> PageCursor:
    """What `encode_cursor` was given, with an id of this kind; `InvalidRequest` for any other text."""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        value = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        created_at, last_id = value
        if (
            type(created_at) is float
            and math.isfinite(created_at)
            and isinstance(last_id, str)
            and ids.fullmatch(last_id)
        ):
            return created_at, last_id
    except (ValueError, TypeError, binascii.Error, RecursionError):
        pass  # said below
    raise InvalidRequest("cursor: this is no cursor; pass on `next_cursor` as it came", field="cursor")
