"""A way to a server that is cut at the worst moment: just before or just after the server gets a COMMIT."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

Moment = Literal["before", "after"]


@dataclass
class Cutter:
    """`arm` has the next COMMIT cut its connection. `open` False: nobody gets through."""

    target: int
    port: int = 0
    cuts: int = 0
    cut: asyncio.Event = field(default_factory=asyncio.Event)
    open: bool = True
    _moment: Moment | None = None
    _shut: bool = False

    def arm(self, moment: Moment, *, shut: bool = False) -> None:
        """`shut`: and let nobody through until `open` is True again."""
        self._moment, self._shut = moment, shut

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.open:
            return
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target)
        back = asyncio.create_task(_pump(up_reader, writer))
        try:
            while data := await reader.read(65536):
                moment = self._moment if b"COMMIT" in data else None
                if moment == "after":
                    back.cancel()  # the answer gets lost
                    await asyncio.gather(back, return_exceptions=True)
                if moment != "before":
                    up_writer.write(data)
                    await up_writer.drain()
                if moment == "after":
                    await up_reader.read(1)  # it has been carried out
                if moment is not None:
                    self._moment = None
                    self.cuts += 1
                    self.open = not self._shut
                    self.cut.set()
                    return
        except ConnectionError:
            pass  # either end went: so does the other
        finally:
            back.cancel()
            await asyncio.gather(back, return_exceptions=True)
            up_writer.transport.abort()


@asynccontextmanager
async def cutter(target: int) -> AsyncIterator[Cutter]:
    """One in front of that port of the loopback."""
    made = Cutter(target)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(made.carry(reader, writer))
        tasks.add(task)
        task.add_done_callback(lambda _: writer.transport.abort())  # one that was cancelled before it began, too
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        await asyncio.sleep(0.01)  # by then it has told of the connection that it accepted last
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass  # as good as its end
    writer.close()
