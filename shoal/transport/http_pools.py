"""The HTTP connections of one event loop, closed with it, and the number of calls that it makes at once."""

from __future__ import annotations

import asyncio

import aiohttp

from shoal.transport.http_server import Server
from shoal.transport.loops import PerLoop

CONNECT_S = 10.0

SHORT_CONNECTIONS = 64
"""For calls that are answered at once. Further ones wait for a free connection."""

LONG_CALLS = 512
"""Creates that wait for room at the same time, and as many other long calls. Further ones wait for a turn before their
time begins."""

_KEEP_S = 30.0
"""How long an idle connection is kept: less than servers and proxies keep it, so that none is closed during a call."""


class Pool:
    """One loop's sessions.

    `short`: for calls that are answered at once. `long`: for calls that take long and for WebSockets. It is not
    bounded: a program that waits for a thousand sandboxes has a thousand connections, and a bound would make it wait
    for one of those sandboxes to end. `turns` bounds the calls that change something. Creates that wait for room have
    their own, `room_turns`: else the terminates that free the room would queue behind them.
    """

    def __init__(self, server: Server, user_agent: str) -> None:
        self.short = _session(server, user_agent, SHORT_CONNECTIONS)
        self.long = _session(server, user_agent, 0)
        self.turns = asyncio.Semaphore(LONG_CALLS)
        self.room_turns = asyncio.Semaphore(LONG_CALLS)

    async def close(self) -> None:
        for session in (self.short, self.long):
            await session.close()


def pools(server: Server, user_agent: str) -> PerLoop[Pool]:
    """The pools of all loops."""
    return PerLoop(lambda: Pool(server, user_agent), Pool.close)


def _session(server: Server, user_agent: str, limit: int) -> aiohttp.ClientSession:
    tls = True if server.tls is None else server.tls
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=limit, ssl=tls, keepalive_timeout=_KEEP_S, loop=asyncio.get_running_loop()
        ),
        headers={"User-Agent": user_agent, "Accept": "application/json, application/problem+json"},
        cookie_jar=aiohttp.DummyCookieJar(),  # the API sets no cookies, and proxies shall set none
        proxy=server.proxy,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
        max_line_size=16 << 10,
        max_field_size=16 << 10,
    )
