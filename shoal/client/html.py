"""How objects show themselves in a notebook: `_repr_html_` of sandboxes, results, lists, outcomes and progress.

Nothing here asks the cluster. What is shown may come from a sandbox: it is cut, its control characters and those that
cannot be seen are spelled out, and it is escaped.

text     one line of foreign text
block    output of many lines
card     one thing: a heading, facts, output
Listed   a list that shows itself as a table
"""

from __future__ import annotations

import html
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from enum import Enum
from functools import reduce
from typing import Any, TypeVar

T = TypeVar("T")

MAX_CELL = 120
"""Characters of one value."""

MAX_BLOCK = 4000
"""Characters of a block of output, or bytes: the first quarter of them, and the last of it."""

MAX_ROWS = 50

_COLOURS = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_MARK = "…"
_PRE = "white-space: pre-wrap; overflow-wrap: anywhere; max-height: 24em; overflow: auto; margin: .2em 0"
_LEFT = 'style="text-align: left"'
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = MAX_CELL


def text(value: object, limit: int = MAX_CELL) -> str:
    """A value as one line of HTML."""
    said = _said(value, limit)
    if len(said) > limit:
        said = said[: limit - 1] + _MARK
    return html.escape(_visible(said, "\t"))


def block(output: str | bytes) -> str:
    """Output as a block of HTML; empty if there is none. Terminal colours are left out."""
    if not output:
        return ""
    head, tail = MAX_BLOCK // 4, MAX_BLOCK - MAX_BLOCK // 4
    left_out = len(output) - MAX_BLOCK
    if left_out > 0:
        unit = "bytes" if isinstance(output, bytes) else "characters"
        said = f"{_decoded(output[:head])}\n{_MARK} {left_out:,} {unit} {_MARK}\n{_decoded(output[-tail:])}"
    else:
        said = _decoded(output)
    shown = html.escape(_visible(_COLOURS.sub("", said.replace("\r\n", "\n")), "\t\n"))
    return f'<pre style="{_PRE}">{shown}</pre>'


def card(heading: str, facts: Mapping[str, object], *blocks: str) -> str:
    """One thing. `heading`, `blocks`: HTML; `facts`: those that are None are left out."""
    told = " · ".join(
        f"{html.escape(name)} <bdi>{text(value)}</bdi>" for name, value in facts.items() if value is not None
    )
    return f"<div>{heading}{'<br>' if told else ''}<small>{told}</small>{''.join(blocks)}</div>"


def table(columns: Iterable[str], rows: Iterable[Iterable[object]], left_out: int = 0) -> str:
    """Rows under headings. `left_out`: how many there are beside them."""
    head = "".join(f"<th {_LEFT}>{text(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td {_LEFT}>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    more = f"<small>{_MARK} and {left_out:,} more</small>" if left_out > 0 else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


class Listed(list[T]):
    """A list that shows itself as a table in a notebook. In all else it is a list.

    `columns`: attributes of its elements, separated by spaces, such as `id name info.state`; a heading is the last part
    of each. An element that has none of them, an error, is shown as text.
    """

    def __init__(self, elements: Iterable[T], columns: str) -> None:
        super().__init__(elements)
        self._columns = columns.split()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return type(self), (list(self), " ".join(self._columns))

    def _repr_html_(self) -> str:
        if not self:
            return "<small>none</small>"
        names = [column.rpartition(".")[2].lstrip("_") for column in self._columns]
        return table(names, map(self._row, self[:MAX_ROWS]), len(self) - MAX_ROWS)

    def _row(self, element: T) -> list[object]:
        if isinstance(element, BaseException):
            return [f"{type(element).__name__}: {element}"]
        return [_shown(column, reduce(getattr, column.split("."), element)) for column in self._columns]


def _shown(column: str, value: Any) -> object:
    """Times as people read them."""
    if (column == "at" or column.endswith("_at")) and isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return value


def _said(value: object, limit: int) -> str:
    """A value in characters: hardly more of them than `limit`."""
    if isinstance(value, Enum):
        value = value.value
    if value is None:
        return ""
    if isinstance(value, str):
        return value[: limit + 1]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_said(name, limit)}={_said(each, limit)}" for name, each in list(value.items())[:limit])
    if isinstance(value, tuple | frozenset | set):
        return ", ".join(_said(each, limit) for each in list(value)[:limit])
    return _REPR.repr(value)


def _decoded(output: str | bytes) -> str:
    return output if isinstance(output, str) else output.decode("utf-8", "backslashreplace")


def _visible(said: str, keep: str) -> str:
    """Characters that cannot be seen, or that change how others are seen, as escapes."""
    if said.isprintable():
        return said
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in said)
