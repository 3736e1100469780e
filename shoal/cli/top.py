"""`shoal top`: sandboxes and nodes, live. What comes from inside a sandbox is shown without control characters."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli import console
from shoal.cli.session import with_cluster
from shoal.model import verbs
from shoal.model.access import ANY_ENVIRONMENT
from shoal.model.errors import Unavailable
from shoal.model.info import Listing, SandboxInfo
from shoal.model.overview import NodeFigures, Overview
from shoal.model.usage import SandboxLoad

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from shoal.client.cluster import Client

_EVERY_S = 2.0
_MOST = 1000
_KEYS = "q quit   n nodes   sort by: c CPU   m memory   d disk   t traffic   a age   r reverse"


@dataclass(frozen=True, slots=True)
class Row:
    """A sandbox, and what it uses where its node has told."""

    info: SandboxInfo
    load: SandboxLoad


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen last. `error`: why there is nothing newer."""

    overview: Overview | None = None
    rows: Sequence[Row] = ()
    error: str | None = None


_ORDERS: dict[str, Callable[[Row], float]] = {
    "c": lambda row: row.load.cpu,
    "m": lambda row: row.load.memory,
    "d": lambda row: row.load.disk,
    "t": lambda row: row.load.network_in + row.load.network_out,
    "a": lambda row: row.info.created_at,
}


@dataclass(slots=True)
class View:
    """What is shown, and how. `height`: rows of the terminal; None: all."""

    seen: Seen = field(default_factory=Seen)
    order: str = "c"
    reverse: bool = False
    nodes: bool = False
    height: int | None = None

    def press(self, key: str) -> bool:
        """Takes a key; False: it ends the command."""
        if key in ("q", "\x03", "\x1b"):
            return False
        if key in _ORDERS:
            self.order, self.nodes = key, False
        elif key == "r":
            self.reverse = not self.reverse
        elif key == "n":
            self.nodes = not self.nodes
        return True

    def render(self) -> RenderableType:
        """All of it."""
        from rich.console import Group
        from rich.text import Text

        parts: list[RenderableType] = [Text(line) for line in _summary(self.seen.overview)]
        if self.seen.error is not None:
            parts.append(Text(console.printable(self.seen.error), style="red"))
        room = None if self.height is None else max(1, self.height - len(parts) - 3)
        nodes = None if self.seen.overview is None else self.seen.overview.nodes
        if self.nodes and nodes is not None:
            parts.append(_node_table(nodes[:room]))
        else:
            parts.append(_sandbox_table(self._sorted()[:room], self.order))
        if self.height is not None:
            parts.append(Text(_KEYS, style="dim"))
        return Group(*parts)

    def _sorted(self) -> list[Row]:
        return sorted(self.seen.rows, key=_ORDERS[self.order], reverse=not self.reverse)


def top(
    environment: Annotated[
        str | None,
        typer.Option("--environment", metavar="NAME", help="Only this environment; default: all that your token sees."),
    ] = None,
    sort: Annotated[str, typer.Option(metavar="KEY", help="c: CPU, m: memory, d: disk, t: traffic, a: age.")] = "c",
    nodes: Annotated[bool, typer.Option("--nodes", help="Begin with the nodes.")] = False,
) -> None:
    """Show sandboxes and nodes as they run, until q.

    Figures of sandboxes are as their nodes saw them last, some ten seconds ago. Where the output is no terminal, it is
    shown once.

    \b
    Examples:
      shoal top
      shoal top --nodes
      shoal top --environment team-a --sort m
      shoal top | head
    """
    view = View(order=sort if sort in _ORDERS else "c", nodes=nodes)
    with_cluster(lambda client: _run(client, environment, view))


async def _run(client: Client, environment: str | None, view: View) -> None:
    out = console.out()
    if not (out.is_terminal and sys.stdin.isatty()):
        view.seen = await look(client, environment)
        out.width = max(out.width, 160)
        out.print(view.render())
        return
    from rich.console import Console
    from rich.live import Live

    out = Console(highlight=False)
    pressed: asyncio.Queue[str] = asyncio.Queue()
    with _keys(pressed), Live(console=out, screen=True, auto_refresh=False) as live:
        looking: asyncio.Task[Seen] | None = None
        due = time.monotonic()
        try:
            while True:
                view.height = out.size.height
                live.update(view.render(), refresh=True)
                if looking is None and time.monotonic() >= due:
                    looking = asyncio.create_task(look(client, environment))
                with contextlib.suppress(TimeoutError):
                    if not view.press(await asyncio.wait_for(pressed.get(), 0.1 if looking else 0.3)):
                        return
                if looking is not None and looking.done():
                    view.seen = _newer(view.seen, looking)
                    looking, due = None, time.monotonic() + _EVERY_S
        finally:
            if looking is not None:
                looking.cancel()


def _newer(before: Seen, looking: asyncio.Task[Seen]) -> Seen:
    error = looking.exception()
    if error is None:
        return looking.result()
    if isinstance(error, Unavailable | OSError | TimeoutError):
        return replace(before, error=f"no answer: {error}")  # it comes back
    raise error


async def look(client: Client, environment: str | None) -> Seen:
    """Asks for all of it."""
    transport = client.transport
    overview = await client.overview.aio(environment=environment, since=time.time() + 1)
    known = environment or overview.environment
    loads = {load.sandbox_id: load for load in await client.loads.aio(environment=known)}
    names = [known] if known else [each.name for each in await client.environments.aio()]
    found: list[SandboxInfo] = []
    for name in names:
        if name != ANY_ENVIRONMENT and len(found) < _MOST:
            page = await transport.ask(verbs.list_sandboxes, Listing(name, limit=_MOST - len(found)))
            found += page.sandboxes
    return Seen(overview, [Row(info, loads.get(info.id) or SandboxLoad(info.id, 0, 0, 0, 0, 0)) for info in found])


@contextlib.contextmanager
def _keys(pressed: asyncio.Queue[str]) -> Iterator[None]:
    """Puts each key into the queue; the terminal is afterwards as it was."""
    fd, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(fd)

    def read() -> None:
        data = os.read(fd, 64)
        if not data:
            loop.remove_reader(fd)
            pressed.put_nowait("q")  # the terminal has gone
        elif not data.startswith(b"\x1b") or data == b"\x1b":  # not an arrow, say
            for key in data.decode("utf-8", "replace"):
                pressed.put_nowait(key)

    tty.setcbreak(fd)
    loop.add_reader(fd, read)
    try:
        yield
    finally:
        loop.remove_reader(fd)
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _summary(overview: Overview | None) -> list[str]:
    if overview is None:
        return ["Asking the cluster …"]
    states = "  ".join(f"{count} {state}" for state, count in overview.states.items() if count) or "no sandboxes"
    p50, p95 = (_seconds(each) for each in (overview.create.p50, overview.create.p95))
    rates = f"creates {overview.creates_per_minute:.0f}/min  ends {overview.ends_per_minute:.0f}/min"
    lines = [
        f"{time.strftime('%H:%M:%S')}  {overview.environment or 'all environments'}: {states}",
        f"{rates}  create p50 {p50} p95 {p95}",
    ]
    lines += [
        f"{each.count} wait for {console.age(each.oldest_s)}: {console.printable(each.why)}"
        for each in overview.waiting[:3]
    ]
    return lines


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def _table(*columns: tuple[str, bool]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    for name, number in columns:
        table.add_column(name, justify="right" if number else "left", no_wrap=True, overflow="ellipsis")
    return table


def _sandbox_table(rows: Sequence[Row], order: str) -> Table:
    marks = {"c": "CPU", "m": "MEMORY", "d": "DISK", "t": "IN/s", "a": "AGE"}
    names = ("SANDBOX", "NAME", "STATE", "CPU", "MEMORY", "DISK", "IN/s", "OUT/s", "AGE", "IMAGE", "COMMAND")
    numbers = {"CPU", "MEMORY", "DISK", "IN/s", "OUT/s", "AGE"}
    table = _table(*((f"{name}*" if marks[order] == name else name, name in numbers) for name in names))
    now = time.time()
    for row in rows:
        info, load = row.info, row.load
        table.add_row(
            *_texts(
                info.id,
                info.spec.name or "",
                info.state.value,
                f"{load.cpu:.2f}",
                f"{load.memory:.0f}M",
                f"{load.disk:.0f}M",
                _bytes(load.network_in),
                _bytes(load.network_out),
                console.age(now - info.created_at),
                info.spec.image[:40],
                " ".join(info.spec.command)[:60],
            )
        )
    return table


def _node_table(nodes: Sequence[NodeFigures]) -> Table:
    numbers = ("SANDBOXES", "CPU USED", "REQUESTED", "MEMORY USED", "REQUESTED", "DISK USED")
    table = _table(("NODE", False), ("REGION", False), *((name, True) for name in numbers), ("STATE", False))
    for node in nodes:
        state = "cordoned" if node.cordoned is not None else "up"
        table.add_row(
            *_texts(
                node.hostname,
                node.region or "",
                str(node.sandboxes),
                f"{node.cpu_used:.1f} of {node.cpu_total:g}",
                f"{node.cpu_requested:.1f}",
                f"{node.memory_used} of {node.memory_total}M",
                f"{node.memory_requested}M",
                f"{node.disk_used // 1024} of {node.disk_total // 1024}G",
                state if node.alive else "does not answer",
            )
        )
    return table


def _texts(*cells: str) -> Iterator[Any]:
    from rich.text import Text

    return (Text(console.printable(cell)) for cell in cells)


def _bytes(number: float) -> str:
    for unit, size in (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"
