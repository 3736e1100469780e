"""JSON answers."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json
from starlette.responses import Response


class Json(Response):
    """A JSON answer, written by pydantic's serialiser: several times as quick as `json`."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content)
