"""Output for people and scripts: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from shoal.model.access import TokenInfo

_GAP = 2
_NARROWEST = 6
_WIDEST = 10_000
"""Characters between the columns of a table, of its narrowest column, and of a line where nobody looks."""


def out() -> Console:
    """The console for results that people read."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def err() -> Console:
    """The console for progress and remarks."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Prints a result for scripts."""
    sys.stdout.write(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")


def print_error(message: str) -> None:
    """Prints one line, whatever the message holds: it may come from a sandbox."""
    text = " ".join(message.split())
    sys.stderr.write(f"shoal: {printable(text)}\n")


def printable(text: str) -> str:
    """Foreign text, without terminal control characters."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


@contextmanager
def steps(text: str) -> Iterator[None]:
    """A `Report`: a spinner while a step runs, a line with its time once it is done."""
    console = err()
    started = time.monotonic()
    if console.is_terminal:
        with console.status(f"{text} …"):
            yield
    else:
        yield
    console.print(f"[green]✓[/green] {text} [dim]{time.monotonic() - started:.1f} s[/dim]")


@contextmanager
def byte_bar(text: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar for bytes; yields the function to call with their number. None without a terminal."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

    console = err()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(text, total=total)
        yield lambda moved: progress.update(task, completed=moved)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table without a frame, a line for each row. On a terminal, what has no room is cut, but for the first column,
    or left out: columns in which nothing is, and then the last ones. Elsewhere nothing is."""
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    console = out()
    cells = [[printable(cell) for cell in row] for row in rows]
    found = [*zip(columns, *cells, strict=True)]
    widths = fitted([max(map(cell_len, column)) for column in found], console.width if console.is_terminal else None)
    if None in widths:
        found = [column for column in found if any(column[1:])]
        widths = fitted([max(map(cell_len, column)) for column in found], console.width)
    table = Table(box=None, pad_edge=False, header_style="bold")
    shown = [(column, width) for column, width in zip(found, widths, strict=True) if width is not None]
    for column, width in shown:
        table.add_column(column[0], no_wrap=True, overflow="ellipsis", width=width)
    for row in zip(*(column[1:] for column, _ in shown), strict=True):
        table.add_row(*map(Text, row))
    print_lines(console, table)


def print_lines(console: Console, lines: RenderableType) -> None:
    """Prints them; without a terminal as long as they are, and with no spaces at their ends."""
    if console.is_terminal:
        console.print(lines)
        return
    console.width = max(console.width, _WIDEST)
    with console.capture() as held:
        console.print(lines)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in held.get().removesuffix("\n").split("\n")))


def fitted(widths: Sequence[int], room: int | None) -> list[int | None]:
    """The widths of columns that fit into `room` (None: any) characters: the widest give way first, but for the first
    column. None: the last ones, which have no room."""
    found = list(widths)
    while room is not None and sum(found) + _GAP * (len(found) - 1) > room and len(found) > 1:
        widest = max(range(1, len(found)), key=found.__getitem__)
        if found[widest] > _NARROWEST:
            found[widest] -= 1
        else:
            found.pop()
    return [*found, *[None] * (len(widths) - len(found))]


def print_listing(
    found: Sequence[Any], columns: Sequence[str], row: Callable[[Any, float], Sequence[str]], none: str, *, json: bool
) -> None:
    """What a command that lists has found: as a table, for scripts as JSON of each one's `to_dict`. `row`: the cells of
    one, given the time; `none`: what is said on stderr where there are none."""
    if json:
        print_json([each.to_dict() for each in found])
    elif found:
        now = time.time()
        print_table(columns, [row(each, now) for each in found])
    else:
        err().print(none)


def age(seconds: float) -> str:
    """`4s`, `12m`, `3h`, `2d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"


def token(info: TokenInfo) -> str:
    """A token's id, name, scope and environment."""
    where = "all environments" if info.environment == "*" else info.environment
    return f"{info.id} ({info.name}: {info.scope.value} in {where})"
