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
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli import console
from shoal.cli.session import with_cluster
from shoal.cli.top_tables import Row, node_table, sandbox_table
from shoal.model import verbs
from shoal.model.access import ANY_ENVIRONMENT
from shoal.model.errors import InvalidRequest, Unavailable
from shoal.model.info import Listing, SandboxInfo
from shoal.model.overview import Overview
from shoal.model.usage import SandboxLoad

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from shoal.client.cluster import Client

_EVERY_S = 2.0
_LATE_S = 4.0
"""Seconds without an answer that are told. The transport itself asks again for much longer before it gives up."""
_MOST = 1000
_WIDE = 200
"""Characters of a line where the output is no terminal."""
_KEYS = "q quit  n nodes  sort: c CPU  m memory  d disk  t traffic  a age  r reverse"


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen last. `at`: when (unix seconds); `error`: why there is nothing newer."""

    at: float = 0.0
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
    """What is shown, and how. `height`: rows of the terminal; None: all; `width`: its columns; `waits_s`: for how long
    the cluster owes an answer."""

    seen: Seen = field(default_factory=Seen)
    order: str = "c"
    reverse: bool = False
    nodes: bool = False
    height: int | None = None
    width: int = _WIDE
    waits_s: float = 0.0

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

        parts: list[RenderableType] = [_line(line) for line in _summary(self.seen)]
        error = f"no answer for {self.waits_s:.0f} s" if self.waits_s >= _LATE_S else self.seen.error
        if error is not None:
            parts.append(_line(console.printable(error), "red"))
        room = None if self.height is None else max(1, self.height - len(parts) - 3)
        nodes = None if self.seen.overview is None else self.seen.overview.nodes
        if self.nodes and nodes is not None:
            parts.append(node_table(nodes[:room], self.width))
        else:
            parts.append(sandbox_table(self._sorted()[:room], self.order, self.width))
        if self.height is not None:
            parts.append(_line(_KEYS, "dim"))
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
    if sort not in _ORDERS:
        raise InvalidRequest(f"sort: {sort!r}; give one of {', '.join(_ORDERS)}", field="sort")
    view = View(order=sort, nodes=nodes)
    with_cluster(lambda client: _run(client, environment, view))


async def _run(client: Client, environment: str | None, view: View) -> None:
    out = console.out()
    if not (out.is_terminal and sys.stdin.isatty()):
        view.seen = await look(client, environment)
        console.print_lines(out, view.render())
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
                view.width, view.height = out.size
                view.waits_s = 0.0 if looking is None else time.monotonic() - due
                live.update(view.render(), refresh=True)
                if looking is None and time.monotonic() >= due:
                    looking = asyncio.create_task(look(client, environment))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.1 if looking else 0.3):
                        key = await pressed.get()
                    if not view.press(key):
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
    rows = [Row(info, loads.get(info.id) or SandboxLoad(info.id, 0, 0, 0, 0, 0)) for info in found]
    return Seen(time.time(), overview, rows)


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


def _summary(seen: Seen) -> list[str]:
    overview = seen.overview
    if overview is None:
        return ["Asking the cluster …"]
    states = "  ".join(f"{count} {state}" for state, count in overview.states.items() if count) or "no sandboxes"
    p50, p95 = (_seconds(each) for each in (overview.create.p50, overview.create.p95))
    rates = f"creates {overview.creates_per_minute:.0f}/min  ends {overview.ends_per_minute:.0f}/min"
    lines = [
        f"{time.strftime('%H:%M:%S', time.localtime(seen.at))}  {overview.environment or 'all environments'}: {states}",
        f"{rates}  create p50 {p50} p95 {p95}",
    ]
    lines += [
        f"{each.count} wait for {console.age(each.oldest_s)}: {console.printable(each.why)}"
        for each in overview.waiting[:3]
    ]
    return lines


def _line(text: str, style: str = "") -> Text:
    """One line, whatever the width: what is too long for it is cut."""
    from rich.text import Text

    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
