"""A raw connection to a port in a sandbox, through its node's relay and its agent. Tunnels use it.

The sandbox needs no network. Once open, it is a plain byte stream that can be half-closed in either direction.
"""

from __future__ import annotations

import asyncio
import struct

from shoal.model import errors
from shoal.wire.frames import Kind, encode
from shoal.wire.messages import MAX_HELLO, check_dialled, check_hello, encode_hello
from shoal.wire.sockets import Endpoint, cannot_reach, check_opening, parse_endpoint, tune
from shoal.wire.tls import TlsTransport

_HEADER = struct.Struct(">IBI")
_LIMIT = 256 << 10
"""Bytes after which the reader stops reading from the socket; it holds at most twice as many."""


async def dial(
    address: str, token: str, port: int, *, wait_s: float = 5, timeout_s: float = 10
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connects to `port` (1 to 65535) on the sandbox's own loopback, through the relay at `address` (see
    `grants.endpoint`).

    `token` needs the scope `tunnel`. `wait_s`: how long the relay may wait for the container's agent (at most 60).
    `timeout_s`: for all the rest. The writer's `write_eof` closes one direction and leaves the other open; close the
    writer when done.

    Raises `Unauthenticated` (malformed or expired token), `PermissionDenied` (scope missing, or the token is for
    another port), `NotFound` (no such container on that node), `Unavailable` (no relay, no agent, or, with the field
    `port`, nothing listens on the port: try again later), `QuotaExceeded` (too many connections into this sandbox),
    `DeadlineExceeded`. If it raises or is cancelled, nothing stays open.
    """
    if not 0 < port < 65536:
        raise errors.InvalidRequest(f"port must be 1 to 65535, not {port}", field="port")
    return await _open(address, token, wait_s, timeout_s, port)


async def open_channel(
    address: str, token: str, *, wait_s: float = 5, timeout_s: float = 10
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the sandbox's agent through the relay at `address`, for a proxy that passes frames on unread.

    Arguments and errors as in `dial`; `token` may have any scope.
    """
    return await _open(address, token, wait_s, timeout_s, None)


async def _open(
    address: str, token: str, wait_s: float, timeout_s: float, port: int | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    relay = parse_endpoint(address)
    check_opening(token, wait_s)
    writer: asyncio.StreamWriter | None = None
    what = "the sandbox's agent" if port is None else f"port {port} of the sandbox"
    try:
        async with asyncio.timeout(timeout_s + wait_s):
            reader, writer = await _connect(relay)
            tune(writer.get_extra_info("socket"), prompt_reader=False)
            writer.write(encode(Kind.HELLO, 0, encode_hello(token, wait_s, port)))
            check_hello(await _hello(reader, "relay"))
            if port is not None:
                _check_dialled(await _hello(reader, "agent"), port)
    except BaseException as error:
        if writer is not None:
            writer.transport.abort()
        if isinstance(error, TimeoutError):
            raise errors.DeadlineExceeded(f"no connection to {what} within {timeout_s + wait_s:g} s") from None
        if isinstance(error, OSError):
            raise cannot_reach(relay, error) from None
        if isinstance(error, UnicodeError):
            raise errors.InvalidRequest(f"address has no possible host name: {address!r}", field="address") from None
        raise
    return reader, writer


async def _connect(relay: Endpoint) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if not relay.fingerprint:
        return await asyncio.open_connection(relay.host, relay.port, limit=_LIMIT)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=_LIMIT, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    _, transport = await loop.create_connection(lambda: TlsTransport(protocol, relay, loop), relay.host, relay.port)
    try:
        await transport.ready
    except BaseException:
        transport.abort()
        raise
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def _check_dialled(answer: bytes, port: int) -> None:
    try:
        check_dialled(answer)
    except errors.Unavailable as error:
        # The field `port` tells it from an absent relay: another route would not help.
        raise errors.Unavailable(error.message, port=port) from None


async def _hello(reader: asyncio.StreamReader, whose: str) -> bytes:
    """The payload of the next HELLO; later bytes stay in the reader."""
    try:
        length, kind, stream = _HEADER.unpack(await reader.readexactly(_HEADER.size))
        if kind != Kind.HELLO or stream != 0 or not 5 <= length <= MAX_HELLO + 5:
            raise errors.Internal(f"malformed hello from the {whose}: another frame came instead")
        return await reader.readexactly(length - 5)
    except asyncio.IncompleteReadError:
        raise errors.Unavailable(f"the connection was closed before the {whose} answered; try again") from None
