"""Port forwarding: a local listener whose connections continue to a port in a sandbox."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from typing import TYPE_CHECKING

from shoal.client.contexts import Context
from shoal.client.dual_method import dual_method
from shoal.client.output import close_in
from shoal.model.errors import FailedPrecondition, InvalidRequest, ShoalError
from shoal.model.validate import check_number

if TYPE_CHECKING:
    from shoal.client.retrying_agent import RetryingAgent
    from shoal.wire.bytestream import ByteStream

MAX_PORT = 65535
MAX_CONNECTIONS = 512
"""Connections that a forward carries at once; more wait."""

_CHUNK = 256 * 1024
_BACKLOG = 128
_AT_ONCE = struct.pack("ii", 1, 0)
_log = logging.getLogger("shoal.forward")


class Forward(Context):
    """A local port that leads to a port in a sandbox while it is open; `Sandbox.forward` makes one.

    The server inside sees connections from its own loopback, so the sandbox needs no network. Whoever can reach
    `address` can reach the port. Leaving its `with` block closes it.
    """

    def __init__(self, agent: RetryingAgent, port: int, host: str, local_port: int) -> None:
        # For `Sandbox.forward`.
        check_port(port)
        check_number("local_port", local_port, -1, MAX_PORT, "a port", whole=True)
        self._agent = agent
        self._port = port
        self._wanted = (host, local_port)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: asyncio.Server | None = None
        self._room = asyncio.Semaphore(MAX_CONNECTIONS)
        self._carrying: set[asyncio.Task[None]] = set()
        self._address: tuple[str, int] | None = None

    @property
    def address(self) -> str:
        """The `host:port` where it listens."""
        host, port = self._listening()
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def local_port(self) -> int:
        """The local port."""
        return self._listening()[1]

    @dual_method
    async def start(self) -> None:
        """Starts listening, in the running loop; `FailedPrecondition` if the local port is taken."""
        host, port = self._wanted
        self._loop = asyncio.get_running_loop()
        try:
            self._server = await asyncio.start_server(self._accept, host, port, limit=_CHUNK, backlog=_BACKLOG)
        except OSError as error:
            raise FailedPrecondition(
                f"local_port: cannot listen on {host}:{port} ({error.strerror or error}); choose another, or 0 for any"
            ) from None
        except UnicodeError:
            raise InvalidRequest(f"host: {host!r} is not a host name", field="host") from None
        found = self._server.sockets[0].getsockname()
        self._address = (found[0], found[1])

    @dual_method
    async def close(self) -> None:
        """Stops listening and closes open connections. May be called again."""
        if self._loop is asyncio.get_running_loop():
            await self._close()
        elif self._loop is not None:
            close_in(self._loop, self._close)

    _leave = close

    async def _close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
        carrying = [*self._carrying]
        for task in carrying:
            task.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)

    def _listening(self) -> tuple[str, int]:
        if self._address is None:
            raise FailedPrecondition("this forward does not listen yet; call `start`", state="new")
        return self._address

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with self._room:
                await self._carry(reader, writer)
        except (ShoalError, OSError) as error:
            _log.info("a connection to port %d of %s ended: %s", self._port, self._agent.sandbox_id, error)
        finally:
            _reset(writer)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = await self._agent.transport.dial(self._agent.sandbox_id, self._port)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_inward(reader, stream))
                group.create_task(_outward(stream, writer))
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        finally:
            await stream.close()
        # Both directions ended cleanly, so let what is still buffered for our client arrive.
        writer.close()
        await writer.wait_closed()

    def __repr__(self) -> str:
        where = "not started" if self._address is None else self.address
        return f"<Forward {where} to port {self._port} of {self._agent.sandbox_id}>"


def check_port(port: int) -> None:
    """`InvalidRequest` if this is not a port number."""
    check_number("port", port, 0, MAX_PORT, "a port", whole=True)


async def _inward(reader: asyncio.StreamReader, stream: ByteStream) -> None:
    """Copies the client's bytes, and their end, into the sandbox."""
    while data := await reader.read(_CHUNK):
        await stream.write(data)
    await stream.write_eof()


async def _outward(stream: ByteStream, writer: asyncio.StreamWriter) -> None:
    """Copies the sandbox's bytes, and their end, to the client."""
    while data := await stream.read():
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Resets a connection that did not end cleanly: a cut must not look like an end of the data."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    writer.transport.abort()
