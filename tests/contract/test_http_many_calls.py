"""Many calls of the HTTP transport at once: which of them wait, and what happens to those when it is closed."""

from __future__ import annotations

import asyncio

import pytest

from shoal.model import verbs
from shoal.transport import http_calls, http_pools
from shoal.transport.http import HttpTransport
from shoal.transport.http_events import next_events
from tests.contract.http_peer import SPEC, Asked, sandbox, serving

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
TOKEN = "shoal_tk-1_secret"


class Gate:
    """A server that holds requests containing `holds` until `open`. `held`: how many now; `most`: the maximum."""

    def __init__(self, holds: str) -> None:
        self._holds = holds
        self._open = asyncio.Event()
        self._arrived = asyncio.Condition()
        self.held = self.most = 0

    async def answer(self, asked: Asked) -> bytes:
        if self._holds in f"{asked.method} {asked.path}":
            async with self._arrived:
                self.held += 1
                self.most = max(self.most, self.held)
                self._arrived.notify_all()
            await self._open.wait()
            self.held -= 1
        return sandbox()

    async def until(self, number: int) -> None:
        async with self._arrived:
            await self._arrived.wait_for(lambda: self.held >= number)

    def open(self) -> None:
        self._open.set()


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_pools, "LONG_CALLS", 4)
    monkeypatch.setattr(http_pools, "SHORT_CONNECTIONS", 1)


async def test_nothing_waits_for_those_that_wait_for_a_sandbox_to_end() -> None:
    gate = Gate("/wait")
    async with serving(gate.answer) as peer:
        transport = HttpTransport(peer.url, TOKEN)
        waits = [asyncio.create_task(transport.wait("sb-1", 0)) for _ in range(8)]
        await gate.until(8)
        await transport.terminate("sb-1")
        await transport.create(SPEC, deadline=5)
        gate.open()
        assert {info.id for info in await asyncio.gather(*waits)} == {"sb-1"}
        await transport.close()


async def test_nothing_waits_for_streams_of_events() -> None:
    gate = Gate("/events")
    async with serving(gate.answer) as peer:
        transport = HttpTransport(peer.url, TOKEN)
        following = [asyncio.create_task(next_events(transport.calls, "/v1/events", {}, 30)) for _ in range(8)]
        await gate.until(8)
        await transport.terminate("sb-1")
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
        await transport.close()


async def test_what_makes_room_does_not_wait_for_creates_that_wait_for_it() -> None:
    gate = Gate("POST")
    async with serving(gate.answer) as peer:
        transport = HttpTransport(peer.url, TOKEN)
        creates = [
            asyncio.create_task(each)
            for _ in range(3)
            for each in (transport.create_many([SPEC], deadline=30), transport.create(SPEC, deadline=30))
        ]
        await gate.until(4)
        assert (await asyncio.wait_for(transport.terminate("sb-1"), 10)).id == "sb-1"
        assert gate.held == 4
        for create in creates:
            create.cancel()
        await gate.until(8)  # what learns which sandboxes they were does not wait for room, and so for none of them
        gate.open()
        await asyncio.gather(*creates, return_exceptions=True)
        await transport.close()
    waiting = [asked for asked in peer.asked if asked.method == "POST"][:8]
    assert [asked.path.endswith("/batch") and not asked.json()["wait"] for asked in waiting] == [False] * 4 + [True] * 4


async def test_a_call_s_time_begins_with_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs.terminate, "takes", 0.01)
    monkeypatch.setattr(http_calls, "ANSWER_S", 30.0)
    monkeypatch.setattr(http_pools, "LONG_CALLS", 1)
    monkeypatch.setitem(http_calls.HttpCalls.call.__kwdefaults__, "patience_s", 0)
    loop = asyncio.get_running_loop()
    now, later = loop.time, 0.0
    monkeypatch.setattr(loop, "time", lambda: now() + later)

    async def slowly(asked: Asked) -> bytes:
        nonlocal later
        later += 15  # as if it had taken so long
        return sandbox()

    async with serving(slowly) as peer:
        transport = HttpTransport(peer.url, TOKEN)
        await asyncio.gather(*[transport.terminate("sb-1") for _ in range(5)])  # more than one of them may take
        await transport.close()
    assert len(peer.asked) == 5


async def test_a_create_that_had_to_wait_has_what_is_left_of_its_deadline() -> None:
    gate = Gate("POST")
    async with serving(gate.answer) as peer:
        transport = HttpTransport(peer.url, TOKEN)
        creates = [asyncio.create_task(transport.create(SPEC, deadline=50)) for _ in range(5)]
        await gate.until(4)
        await asyncio.sleep(0.5)
        gate.open()
        await asyncio.gather(*creates)
        await transport.close()
    assert gate.most == 4
    *first, last = [float(asked.path.rpartition("deadline=")[2]) for asked in peer.asked]
    assert last <= 49.5
    assert last < min(first)


async def test_a_call_that_stands_in_line_is_made_after_all_where_the_connections_are_closed() -> None:
    async with serving(sandbox()) as peer:
        transport = HttpTransport(peer.url, TOKEN)
        gate = Gate("sb-held")
        peer.script = [gate.answer]
        held = asyncio.create_task(transport.ask(verbs.get, "sb-held"))
        await gate.until(1)
        in_line = asyncio.create_task(transport.ask(verbs.get, "sb-1"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await transport.calls.close()
        gate.open()
        assert [info.id for info in await asyncio.gather(held, in_line)] == ["sb-1", "sb-1"]
        await transport.close()


async def test_a_call_that_is_given_up_in_line_is_given_up() -> None:
    gate = Gate("DELETE")
    async with serving(gate.answer) as peer:
        transport = HttpTransport(peer.url, TOKEN)
        ends = [asyncio.create_task(transport.terminate("sb-1")) for _ in range(5)]
        await gate.until(4)
        ends[-1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await ends[-1]
        gate.open()
        await asyncio.gather(*ends[:-1])
        await transport.terminate("sb-1")  # its turn was given back
        await transport.close()
