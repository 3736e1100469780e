"""`shoal top` and `shoal events`: what sandboxes are called does nothing to the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from shoal.cli.history import _line
from shoal.cli.top import Seen, View, look
from shoal.cli.top_tables import Row
from shoal.client.cluster import Client
from shoal.client.sandbox import Sandbox
from shoal.model.access import SandboxEvent
from shoal.model.info import SandboxInfo
from shoal.model.states import State
from shoal.model.usage import SandboxLoad
from tests.fakes.cluster import FakeTransport
from tests.unit.builders import spec

HOSTILE = "a\x1b[2J\u202eb\nc"


def shown(view: View) -> str:
    out = io.StringIO()
    Console(file=out, width=200, highlight=False).print(view.render())
    return out.getvalue()


def row(sandbox_id: str, cpu: float, created_at: float = 0.0, **changes: object) -> Row:
    info = SandboxInfo(sandbox_id, State.RUNNING, spec(**changes), created_at)
    return Row(info, SandboxLoad(sandbox_id, cpu, 10 - cpu, 0, 0, 0))


def test_keys_sort_and_quit() -> None:
    view = View(Seen(rows=[row("sb-1", 1.0, 5.0), row("sb-2", 2.0, 3.0)]))
    assert shown(view).index("sb-2") < shown(view).index("sb-1")
    assert view.press("m")
    assert shown(view).index("sb-1") < shown(view).index("sb-2")
    assert view.press("r")
    assert shown(view).index("sb-2") < shown(view).index("sb-1")
    assert view.press("x")
    assert not view.press("q")


def test_hostile_texts_are_shown_as_text() -> None:
    view = View(Seen(rows=[row("sb-1", 1.0, command=("sh", HOSTILE))], error=HOSTILE), height=20)
    text = shown(view)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.count("\n") < 20
    line = _line(SandboxEvent(1, 0.0, "main", "sb-1", "failed", {"message": HOSTILE}), colour=False)
    assert line.isprintable()
    assert "\x1b[2J" not in _line(SandboxEvent(1, 0.0, "main", "sb-1", "failed", {"message": HOSTILE}), colour=True)


def test_what_is_old_says_so() -> None:
    view = View(Seen(rows=[row("sb-1", 1.0)]))
    assert "no answer" not in shown(view)
    view.waits_s = 12.3
    assert "no answer for 12 s" in shown(view)


@pytest.mark.parametrize("width", [20, 40, 80, 120, 200])
def test_a_narrow_terminal_shows_fewer_columns_and_those_whole(width: int) -> None:
    view = View(Seen(rows=[row("sb-" + "x" * 16, 1.25, name="n" * 40, command=("sh",))]), width=width)
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(view.render())
    text = out.getvalue()
    assert "sb-" + "x" * 16 in text
    assert ("1.25" in text) == (width >= 40)
    assert ("running" in text) == (width >= 80)
    assert ("COMMAND" in text) == (width >= 120)
    view.nodes = True
    Console(file=out, width=width, highlight=False).print(view.render())


@pytest.mark.anyio
async def test_it_sees_sandboxes_of_all_environments_and_nodes() -> None:
    client = Client(FakeTransport())
    made = await Sandbox.create.aio(name="web", client=client)
    view = View(await look(client, None))
    assert made.id in shown(view)
    assert "0.50" in shown(view)
    view.press("n")
    assert "fake" in shown(view)
    await client.close.aio()
