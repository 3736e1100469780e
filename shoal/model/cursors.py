"""Where a listing goes on: the place after a sandbox, as text that means nothing to whoever passes it on."""

from __future__ import annotations

import base64
import binascii
import struct

from shoal.model.errors import InvalidRequest
from shoal.model.ids import SANDBOX

_TIME = struct.Struct(">d")
_MAX = 100


def encode_cursor(place: tuple[float, str]) -> str:
    """The cursor of `Listing.before`: (created_at, id) of the last sandbox of a page."""
    return base64.urlsafe_b64encode(_TIME.pack(place[0]) + place[1].encode("ascii")).rstrip(b"=").decode("ascii")


def decode_cursor(text: str) -> tuple[float, str]:
    """`encode_cursor` back again; `InvalidRequest` for anything else."""
    try:
        if len(text) > _MAX:
            raise ValueError
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        created_at, sandbox_id = _TIME.unpack(data[:8])[0], data[8:].decode("ascii")
    except (ValueError, binascii.Error, struct.error):
        created_at, sandbox_id = float("nan"), ""
    if not (0 <= created_at < 1e12 and SANDBOX.fullmatch(sandbox_id)):
        raise InvalidRequest(
            "cursor: it is none of this API's; pass `next_cursor` of the page before as it is", field="cursor"
        )
    return created_at, sandbox_id
