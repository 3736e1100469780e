"""What a sandbox's own command wrote: by offset, live, after the sandbox's end; and its readers do not hold it up."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from shoal.model import verbs
from shoal.model.access import Scope
from shoal.wire.agent import Start
from tests.contract.api.lab import Lab, lab, until
from tests.contract.api.rawsocket import RawSocket, connection

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

LINES = 3_000_000
"""Numbers that the command writes: far more bytes than buffers on the way to a client hold."""


async def test_logs_of_a_sandbox_that_lives_and_ends() -> None:
    async with lab() as place:
        async with place.http.get(f"{place.at}/logs") as answer:
            assert (answer.status, await answer.read()) == (200, b"")  # it has no command
        agent = await place.cluster.agent(place.sandbox_id)
        go = place.directory / "go"
        script = f"head -c 3000000 /dev/zero; echo tail; while [ ! -e {go} ]; do sleep 0.01; done; echo end"
        await agent.exec(Start("p-main", ["sh", "-c", script]), tail=True, stdin=False)

        async def written() -> bool:
            async with place.http.get(f"{place.at}/logs") as answer:
                return (await answer.read()).endswith(b"\0tail\n")

        await until(written, "it has written")
        async with place.http.get(f"{place.at}/logs?follow=true") as following:
            begin = int(following.headers["X-Shoal-Offset"])
            assert 0 < begin <= 3_000_005  # the oldest is gone, and the reader knows
            assert (await following.content.readexactly(3_000_005 - begin)).endswith(b"\0tail\n")
            place.cluster.end(b"x" * 3_000_005 + b"end\nand more\n")
            assert await following.read() == b"end\nand more\n"
        async with place.http.get(f"{place.at}/logs?offset=3000009") as answer:
            assert (answer.headers["X-Shoal-Offset"], await answer.read()) == ("3000009", b"and more\n")
        async with place.http.get(f"{place.at}/logs?stream=stderr") as answer:
            assert await answer.read() == b""
        status, code, _ = await place.problem("GET", "/processes/p-other/output")
        assert (status, code) == (410, "sandbox_ended")


def _numbers() -> bytes:
    return b"".join(b"%d\n" % number for number in range(1, LINES + 1))


async def _command(place: Lab, script: str) -> None:
    agent = await place.cluster.agent(place.sandbox_id)
    await agent.exec(Start("p-main", ["sh", "-c", script]), tail=True, stdin=False)


async def _ended(place: Lab) -> None:
    """The command has ended: nobody held it up."""
    agent = await place.cluster.agent(place.sandbox_id)
    assert (await asyncio.wait_for(agent.wait("p-main"), 20)).exit == 0


async def _body(client: RawSocket) -> tuple[bytes, bool]:
    """What comes of a chunked body, and whether it has its end."""
    got = bytearray()
    try:
        while size := int(await client.reader.readline(), 16):
            got += await client.reader.readexactly(size)
            await client.reader.readexactly(2)
    except (asyncio.IncompleteReadError, ValueError) as broken:  # no number: the connection's end
        return bytes(got) + getattr(broken, "partial", b""), False
    return bytes(got), True


@pytest.mark.parametrize("follow", ["true", "false"])
async def test_a_reader_that_takes_nothing_does_not_hold_the_command_up(place: Lab, follow: str) -> None:
    go = place.directory / "go"
    await _command(
        place,
        f"seq {LINES} | head -c 2000000; while [ ! -e {go} ]; do sleep 0.01; done; seq {LINES} | tail -c +2000001",
    )
    everything = _numbers()
    _, token = await place.cluster.ask(verbs.create_token, "reader", "main", Scope.READ, None)
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as reader:

        async def written() -> bool:
            async with reader.get(f"{place.at}/logs") as answer:
                return (await answer.read()).endswith(everything[1_999_900:2_000_000])

        await until(written, "it has written")
        path = f"/v1/sandboxes/{place.sandbox_id}/logs?follow={follow}"
        head = f"GET {path} HTTP/1.1\nHost: x\nAuthorization: Bearer {token}"
        async with connection(place.server.url, head, receive_buffer=1 << 14) as client:
            headers = (await client.reader.readuntil(b"\r\n\r\n")).lower()
            (begin,) = (int(line.split()[1]) for line in headers.split(b"\r\n") if line.startswith(b"x-shoal-offset:"))
            go.touch()
            await _ended(place)
            data, whole = await asyncio.wait_for(_body(client), 20)
        # No gap within it, and of what there was as it began nothing is missing.
        assert data == everything[begin : begin + len(data)]
        assert begin + len(data) >= 2_000_000
        if follow == "false":
            assert (begin + len(data), whole) == (2_000_000, True)
            return
        # It was broken off, and comes back.
        assert not whole
        at = begin + len(data)
        async with reader.get(f"{place.at}/logs?follow=true&offset={at}") as answer:
            began = int(answer.headers["X-Shoal-Offset"])
            assert began > at
            assert await answer.read() == everything[began:]


async def test_what_there_is_comes_whole_however_fast_the_command_is(place: Lab) -> None:
    await _command(place, "exec yes")
    full = 0
    while full < 10:
        async with place.http.get(f"{place.at}/logs") as answer:
            begin = int(answer.headers["X-Shoal-Offset"])
            data = await answer.read()
        assert data == (b"y\n" * (len(data) // 2 + 1))[begin % 2 :][: len(data)]
        if begin > 0:  # what is kept is replaced all the time
            assert len(data) == 1 << 20
            full += 1


async def test_a_reader_that_may_run_processes_is_waited_for(place: Lab) -> None:
    go = place.directory / "go"
    await _command(place, f"while [ ! -e {go} ]; do sleep 0.01; done; seq {LINES}")
    async with place.http.get(f"{place.at}/processes/p-main/output") as answer:
        go.touch()
        await asyncio.sleep(0.3)  # it could have written far more meanwhile than is kept
        assert await answer.read() == _numbers()
