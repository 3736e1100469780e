"""The gateway as the node holds it: killed, rolled and adopted without a connection that is refused."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import uvloop

from shoal.actors.node.gateway import Gateway
from shoal.actors.node.program_metrics import gateway_series
from shoal.images.binaries import agent_binary
from shoal.model.errors import FailedPrecondition, Unavailable
from shoal.model.metrics import Series
from shoal.model.serving_paths import ServingPaths
from shoal.model.settings import ApiSettings, TelemetrySettings
from tests.ports import free_port

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

WITHIN_S = 20.0
ANSWER = b"HTTP/1.1 200 OK\r\nX-Request-Id: x\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
def paths() -> Iterator[ServingPaths]:
    made = Path(tempfile.mkdtemp(prefix="shoal-", dir="/tmp"))
    yield ServingPaths(made, "lab")
    shutil.rmtree(made)


@asynccontextmanager
async def replica(paths: ServingPaths, delay_s: float = 0.0) -> AsyncIterator[None]:
    """A replica that answers everything, each request on a connection of its own."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await asyncio.sleep(delay_s)
                writer.write(ANSWER)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    paths.replicas.mkdir(parents=True, exist_ok=True)
    async with await asyncio.start_unix_server(serve, str(paths.replicas / "0.sock")):
        yield


def gateway(paths: ServingPaths, port: int, telemetry: TelemetrySettings | None = None) -> Gateway:
    return Gateway(agent_binary(), paths, ApiSettings(port=port), paths.run_dir / "log", telemetry)


async def ask(port: int) -> str:
    """The status line of an answer; a connection that is refused raises."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"GET /v1/health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        return (await asyncio.wait_for(reader.readline(), WITHIN_S)).decode().strip()
    finally:
        writer.close()


def counted(series: Mapping[Series, float], name: str, **labels: str) -> float:
    """The value of the one series of that name and those labels."""
    (value,) = [value for each, value in series.items() if each.name == name and dict(each.labels) == labels]
    return value


async def pid(made: Gateway) -> int:
    """Of the process, as soon as it answers."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                return int((await made.ask({"op": "info"}))["pid"])
            except Unavailable:
                await asyncio.sleep(0.02)


async def test_one_that_is_killed_refuses_nobody(paths: ServingPaths) -> None:
    port = free_port()
    made = gateway(paths, port)
    async with replica(paths):
        await made.open()
        await made.open()  # again is harmless
        try:
            before = await pid(made)
            assert await ask(port) == "HTTP/1.1 200 OK"
            os.kill(before, signal.SIGKILL)
            assert await ask(port) == "HTTP/1.1 200 OK"
            assert await pid(made) != before
            told = gateway_series(await made.ask({"op": "metrics"}))
            assert counted(told, "shoal_gateway_requests_total", kind="api", code="2xx") == 1
            assert counted(told, "shoal_gateway_request_seconds_bucket", kind="api", le="+Inf") == 1
            assert counted(told, "shoal_gateway_replicas") == 1
        finally:
            await made.close()
    with pytest.raises(ConnectionRefusedError):
        await ask(port)
    assert not paths.control.exists()


async def test_a_roll_ends_what_is_under_way_and_refuses_nobody(paths: ServingPaths) -> None:
    port = free_port()
    made = gateway(paths, port)
    async with replica(paths, delay_s=0.5):
        await made.open()
        try:
            before = await pid(made)
            under_way = asyncio.gather(*(ask(port) for _ in range(8)))
            await asyncio.sleep(0.2)
            await made.roll(agent_binary())
            assert await ask(port) == "HTTP/1.1 200 OK"
            assert await under_way == ["HTTP/1.1 200 OK"] * 8
            after = await pid(made)
            assert after != before
            os.kill(after, signal.SIGKILL)
            assert await ask(port) == "HTTP/1.1 200 OK"
        finally:
            await made.close()


async def test_another_actor_takes_it_with_its_listening_socket(paths: ServingPaths) -> None:
    port = free_port()
    first, second = gateway(paths, port), gateway(paths, port)
    async with replica(paths):
        await first.open()
        before = await pid(first)
        await first.detach()
        first.release()
        assert second.wanted
        await second.open()
        try:
            assert await pid(second) == before
            os.kill(before, signal.SIGKILL)
            assert await ask(port) == "HTTP/1.1 200 OK"
        finally:
            await second.close()


async def test_one_with_other_settings_is_replaced_where_it_is_adopted(paths: ServingPaths) -> None:
    port = free_port()
    first, second = gateway(paths, port), gateway(paths, port, TelemetrySettings(log_format="json"))
    async with replica(paths):
        await first.open()
        before = await pid(first)
        await first.detach()
        first.release()
        asked = asyncio.create_task(ask_for(port, 1.0))
        await second.open()
        try:
            assert await pid(second) != before
            assert await asked == {"HTTP/1.1 200 OK"}
        finally:
            await second.close()
            await first.close()


async def ask_for(port: int, seconds: float) -> set[str]:
    """The status lines of all answers in that time."""
    told, end = set(), time.monotonic() + seconds
    while time.monotonic() < end:
        told.add(await ask(port))
        await asyncio.sleep(0.01)
    return told


async def sockets_of_a_child() -> set[int]:
    """The inodes of the sockets that a process gets which this one starts now."""
    child = await asyncio.create_subprocess_exec("sleep", "60", stdin=asyncio.subprocess.DEVNULL)
    try:
        opened = f"/proc/{child.pid}/fd"
        links = []
        for number in os.listdir(opened):
            with suppress(FileNotFoundError):  # the program's loader has just closed it
                links.append(os.readlink(f"{opened}/{number}"))
        return {int(link[len("socket:[") : -1]) for link in links if link.startswith("socket:[")}
    finally:
        child.kill()
        await child.wait()


def test_no_other_process_gets_its_listening_socket(paths: ServingPaths) -> None:
    """Else that process would keep the port taken after the gateway's and the actor's end. Ray's actors run on uvloop,
    which leaves descriptors inheritable that it has passed on."""

    async def run() -> None:
        port = free_port()
        first, second = gateway(paths, port), gateway(paths, port)
        await first.open()
        try:
            assert first._listener is not None
            listener = os.fstat(first._listener.fileno()).st_ino
            assert listener not in await sockets_of_a_child()
            await first.detach()
            first.release()
            await second.open()
            assert listener not in await sockets_of_a_child()
        finally:
            await second.close()
            await first.close()  # which started the process, and so waits for its end

    uvloop.run(run())


async def test_a_port_that_is_taken_is_told(paths: ServingPaths) -> None:
    port = free_port()
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", port):
        with pytest.raises(FailedPrecondition):
            await gateway(paths, port).open()
