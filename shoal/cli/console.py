"""What people and scripts get to see: results on stdout, all the rest on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from shoal.model.access import TokenInfo


def out() -> Console:
    """For results that a person reads."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def err() -> Console:
    """For progress and remarks."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """For results that a script reads."""
    sys.stdout.write(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")


def print_error(message: str) -> None:
    """One line, whatever the message holds: it may come from inside a sandbox."""
    text = " ".join(message.split())
    sys.stderr.write(f"shoal: {printable(text)}\n")


def printable(text: str) -> str:
    """Text from elsewhere, without what a terminal would obey."""
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
    """A bar for bytes moved; gives what is to be told their number so far. Nothing where nobody looks."""
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
    """Rows under headings: no frame, nothing cut off where the output is no terminal."""
    from rich.table import Table
    from rich.text import Text

    console = out()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=not console.is_terminal, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    if not console.is_terminal:
        console.width = 10_000
    console.print(table)


def age(seconds: float) -> str:
    """`4s`, `12m`, `3h`, `2d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"


def token(info: TokenInfo) -> str:
    """Which token it is, and what it may do."""
    where = "all environments" if info.environment == "*" else info.environment
    return f"{info.id} ({info.name}: {info.scope.value} in {where})"
