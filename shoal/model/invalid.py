"""What pydantic finds wrong, as `InvalidRequest`: the field, what was given, and the remedy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from shoal.model.errors import InvalidRequest

Location = tuple[str | int, ...]

_BRANCH = re.compile(r"str|int|float|bool|constrained-\w+|.*\[.*")  # of a union, as pydantic names them

_REMEDIES = {
    "extra_forbidden": "there is no such member; remove it",
    "missing": "it is missing; give it",
    "string_unicode": "it is not valid UTF-8; encode what is binary, or write it to a file",
}


def invalid_request(found: Sequence[Mapping[str, Any]], docs: Mapping[str, str] | None = None) -> InvalidRequest:
    """The error for what is wrong first. `found`: pydantic's list of errors; `docs`: what each field means.

    With `docs` the error is that of the whole field; else of the place within it, dotted.
    """
    path = _path(found[0]["loc"])
    # Of a union each branch has an error: the one that came furthest is what was meant.
    first = max((each for each in found if _path(each["loc"])[: len(path)] == path), key=lambda each: len(each["loc"]))
    path = _path(first["loc"]) or ("body",)
    field = (str(path[0]) if docs else ".".join(map(str, path)))[:200]
    return InvalidRequest(f"{field}: {_reason(first, docs.get(field) if docs else None)[:500]}", field=field)


def _path(location: Location) -> Location:
    return tuple(part for part in location if isinstance(part, int) or not _BRANCH.fullmatch(part))


def _reason(error: Mapping[str, Any], doc: str | None) -> str:
    kind, message = error["type"], str(error["msg"]).removeprefix("Value error, ")
    if kind in _REMEDIES:
        return _REMEDIES[kind]
    if " should " not in message:
        return message
    should = re.sub(r"^\w+ should", "it should", message)
    should = re.sub(r"a valid tuple\b", "a list", re.sub(r"a valid dictionary\b.*", "an object", should))
    return f"{_shown(error.get('input'))} is not possible: {should}{f' ({doc})' if doc else ''}"


def _shown(value: Any) -> str:
    """A scalar as it is written, shortened; of anything else its kind, for it may be large."""
    if isinstance(value, str):
        return repr(value[:80])
    if isinstance(value, int) and abs(value) >= 10**80:
        return "a number of hundreds of digits"  # Python refuses to write out whole numbers of thousands of digits
    if value is None or isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "an object"
    return f"a {type(value).__name__}"
