"""In which order a listing of sandboxes comes, and where in it a page ends.

`created`, `name` and the like; with `-` before it, backwards. Sandboxes of the same name, state, … come by their time
of creation. A page ends at the values of its last sandbox, so that the next page goes on from there whatever has become
of that sandbox.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from shoal.model.errors import InvalidRequest
from shoal.model.info import SortedCursor
from shoal.model.spec import SandboxSpec
from shoal.model.states import State

NEWEST, OLDEST = "-created", "created"

MOST_TEXT = 64
"""Characters of a text by which sandboxes are sorted: a cursor holds them."""


class Sortable(Protocol):
    """What is sorted: what the controller keeps of a sandbox, or tells of it."""

    @property
    def id(self) -> str: ...
    @property
    def created_at(self) -> float: ...
    @property
    def state(self) -> State: ...
    @property
    def spec(self) -> SandboxSpec: ...


_LIFE = {state: float(number) for number, state in enumerate(State)}

_VALUES: Mapping[str, Callable[[Any], str | float]] = {
    "name": lambda sandbox: sandbox.spec.name or sandbox.id,
    "state": lambda sandbox: _LIFE[sandbox.state],
    "image": lambda sandbox: sandbox.spec.image[:MOST_TEXT],
    "region": lambda sandbox: ",".join(sandbox.spec.regions)[:MOST_TEXT],
    "cpu": lambda sandbox: float(sandbox.spec.resources.cpu_limit),
    "memory": lambda sandbox: float(sandbox.spec.resources.memory_limit),
}
_TEXTS = ("name", "image", "region")

SORTS = tuple(sign + name for name in ("created", *_VALUES) for sign in ("", "-"))
"""What a listing may be sorted by."""


def check_sort(sort: object) -> None:
    """Raises `InvalidRequest`, which names the choices."""
    if sort not in SORTS:
        names = ", ".join(name for name in SORTS if not name.startswith("-"))
        raise InvalidRequest(
            f"sort: {sort!r:.80} is no order; there are {names}, and each with a - before it", field="sort"
        )


def check_cursor(cursor: SortedCursor | None, sort: str) -> None:
    """Raises `InvalidRequest` for a place in another order."""
    by = sort.lstrip("-")
    value = None if cursor is None or len(cursor) == 2 else cursor[2]
    wanted = type(None) if by == "created" or cursor is None else str if by in _TEXTS else float
    if not isinstance(value, wanted):
        raise InvalidRequest("cursor: it is of a listing in another order; begin anew", field="cursor")


def cursor_at(sandbox: Sortable, sort: str) -> SortedCursor:
    """The end of a page whose last sandbox this is."""
    value = _VALUES.get(sort.lstrip("-"))
    if value is None:
        return sandbox.created_at, sandbox.id
    return sandbox.created_at, sandbox.id, value(sandbox)


def value_by(sort: str) -> Callable[[Any], str | float]:
    """What gives the value of a `Sortable` by which it is sorted, where that is not its time."""
    return _VALUES[sort.lstrip("-")]


def place_of(cursor: SortedCursor) -> tuple[Any, ...]:
    """What a sandbox, or the end of a page, is sorted by."""
    return cursor if len(cursor) == 2 else (cursor[2], cursor[0], cursor[1])
