"""The tables of `shoal top`, as wide as the terminal: what has no room is left out, the least important first."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from shoal.cli import console
from shoal.model.info import SandboxInfo
from shoal.model.overview import NodeFigures
from shoal.model.usage import SandboxLoad

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """A sandbox, and what it uses where its node has told."""

    info: SandboxInfo
    load: SandboxLoad


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. `width`: what it takes at least; `number`: to the right; `grows`: where there is room.

    `rank`: the higher, the sooner it is left out of a narrow terminal.
    """

    name: str
    width: int
    rank: int
    number: bool = False
    grows: bool = False


_GAP = 2

_SANDBOX_COLUMNS = (
    Column("SANDBOX", 19, 0),
    Column("NAME", 10, 5, grows=True),
    Column("STATE", 8, 3),
    Column("CPU", 5, 1, number=True),
    Column("MEMORY", 7, 2, number=True),
    Column("DISK", 7, 6, number=True),
    Column("IN/s", 6, 7, number=True),
    Column("OUT/s", 6, 8, number=True),
    Column("AGE", 4, 4, number=True),
    Column("IMAGE", 10, 9, grows=True),
    Column("COMMAND", 12, 10, grows=True),
)
_NODE_COLUMNS = (
    Column("NODE", 12, 0, grows=True),
    Column("REGION", 10, 8),
    Column("SANDBOXES", 9, 1, number=True),
    Column("CPU USED", 10, 2, number=True),
    Column("CPU ASKED", 9, 5, number=True),
    Column("MEMORY USED", 16, 3, number=True),
    Column("MEMORY ASKED", 12, 6, number=True),
    Column("DISK USED", 12, 7, number=True),
    Column("STATE", 8, 4),
)


def fitting(columns: Sequence[Column], width: int) -> list[tuple[Column, int]]:
    """(column, its most characters) of those that have room in `width` characters, in their order."""
    chosen: list[Column] = []
    for column in sorted(columns, key=lambda each: each.rank):
        if sum(each.width + _GAP for each in (*chosen, column)) - _GAP > width and chosen:
            break
        chosen.append(column)
    left = width - sum(each.width + _GAP for each in chosen) + _GAP
    growing = sum(each.grows for each in chosen)
    return [(each, each.width + (max(0, left) // growing if each.grows else 0)) for each in columns if each in chosen]


def _table(columns: Sequence[tuple[Column, int]], marked: str = "") -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    for column, most in columns:
        name = f"{column.name}*" if column.name == marked else column.name
        justify: Literal["left", "right"] = "right" if column.number else "left"
        table.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis", max_width=most)
    return table


def sandbox_table(rows: Sequence[Row], order: str, width: int) -> Table:
    marks = {"c": "CPU", "m": "MEMORY", "d": "DISK", "t": "IN/s", "a": "AGE"}
    columns = fitting(_SANDBOX_COLUMNS, width)
    table = _table(columns, marks[order])
    now = time.time()
    for row in rows:
        info, load = row.info, row.load
        cells = {
            "SANDBOX": info.id,
            "NAME": info.spec.name or "",
            "STATE": info.state.value,
            "CPU": f"{load.cpu:.2f}",
            "MEMORY": f"{load.memory:.0f}M",
            "DISK": f"{load.disk:.0f}M",
            "IN/s": _bytes(load.network_in),
            "OUT/s": _bytes(load.network_out),
            "AGE": console.age(now - info.created_at),
            "IMAGE": info.spec.image,
            "COMMAND": " ".join(info.spec.command),
        }
        table.add_row(*_texts(cells, columns))
    return table


def node_table(nodes: Sequence[NodeFigures], width: int) -> Table:
    columns = fitting(_NODE_COLUMNS, width)
    table = _table(columns)
    for node in nodes:
        state = "cordoned" if node.cordoned is not None else "up"
        cells = {
            "NODE": node.hostname,
            "REGION": node.region or "",
            "SANDBOXES": str(node.sandboxes),
            "CPU USED": f"{node.cpu_used:.1f} of {node.cpu_total:g}",
            "CPU ASKED": f"{node.cpu_requested:.1f}",
            "MEMORY USED": f"{node.memory_used} of {node.memory_total}M",
            "MEMORY ASKED": f"{node.memory_requested}M",
            "DISK USED": f"{node.disk_used // 1024} of {node.disk_total // 1024}G",
            "STATE": state if node.alive else "no answer",
        }
        table.add_row(*_texts(cells, columns))
    return table


def _texts(cells: Mapping[str, str], columns: Sequence[tuple[Column, int]]) -> Iterator[Any]:
    from rich.text import Text

    return (Text(console.printable(cells[column.name][:200])) for column, _ in columns)


def _bytes(number: float) -> str:
    for unit, size in (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"
