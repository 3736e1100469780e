"""JSON answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

from shoal.model.verbs import Verb


class Json(Response):
    """A JSON answer, written by pydantic's serialiser: several times as quick as `json`."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content)


def listed(verb: Verb[..., Any], found: Iterable[Any]) -> Json:
    """The answer to a verb that gives a list."""
    return Json({verb.many: [each.to_dict() for each in found]})
