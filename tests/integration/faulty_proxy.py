"""A proxy before a server that fails as networks and services do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

Fault = Literal["none", "slow", "errors", "hangs", "away"]
"""`slow`: each piece that a client sends is late by 20 ms; `errors`: a request over HTTP is answered with 500; `hangs`:
nothing passes; `away`: connections are refused, and those there are end."""

_LATE_S = 0.02
_LOOK_S = 0.02
_BODY = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>as the test wants it</Message></Error>"
_ERROR = (
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
)


class FaultyProxy:
    """`address`: where it listens, `host:port`; `fault`: what it does now."""

    def __init__(self, host: str, upstream: str) -> None:
        self.fault: Fault = "none"
        self.address = ""
        self._host = host
        self._upstream = upstream.rpartition(":")
        self._loop = asyncio.new_event_loop()

    def serve(self, ready: threading.Event) -> None:
        """Runs until `stop`."""
        server = self._loop.run_until_complete(asyncio.start_server(self._carry, self._host, 0))
        self.address = f"{self._host}:{server.sockets[0].getsockname()[1]}"
        ready.set()
        self._loop.run_forever()
        server.close()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _end(self) -> None:
        connections = asyncio.all_tasks() - {asyncio.current_task()}
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await asyncio.sleep(_LOOK_S)  # sockets are closed a turn of the loop later

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self._upstream
        back: asyncio.StreamWriter | None = None
        with suppress(OSError, asyncio.CancelledError):
            if self.fault != "away":
                there, back = await asyncio.open_connection(host, int(port))
                ways = [
                    asyncio.ensure_future(self._pump(reader, back, writer)),
                    asyncio.ensure_future(self._pump(there, writer, None)),
                    asyncio.ensure_future(self._cut()),
                ]
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in ways:
                    way.cancel()
        if back is not None:
            back.close()
        writer.close()

    async def _pump(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, answers: asyncio.StreamWriter | None
    ) -> None:
        with suppress(OSError):
            while piece := await source.read(65536):
                if answers is not None and self.fault == "slow":
                    await asyncio.sleep(_LATE_S)
                if answers is not None and self.fault == "errors":
                    answers.write(_ERROR)
                    await answers.drain()
                    return
                while self.fault == "hangs":  # noqa: ASYNC110 - another thread sets it
                    await asyncio.sleep(_LOOK_S)
                target.write(piece)
                await target.drain()

    async def _cut(self) -> None:
        while self.fault != "away":  # noqa: ASYNC110 - another thread sets it
            await asyncio.sleep(_LOOK_S)


@contextmanager
def faulty_proxy(host: str, upstream: str) -> Iterator[FaultyProxy]:
    """One that runs until the end. `upstream`: `host:port`."""
    proxy, ready = FaultyProxy(host, upstream), threading.Event()
    thread = threading.Thread(target=proxy.serve, args=(ready,), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join(10)
