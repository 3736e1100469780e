"""A server that answers HTTP requests as a test tells it to: right, wrong, or not at all."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import pytest

from shoal.model.access import Scope, TokenInfo
from shoal.model.errors import ShoalError
from shoal.model.http import PROBLEM, problem, status_of
from shoal.model.info import SandboxInfo
from shoal.model.sandbox_json import info_to_json
from shoal.model.spec import Resources, SandboxSpec
from shoal.model.states import State

SPEC = SandboxSpec("image", Resources(0.1, 1.0, 64, 128, 100, 10), idempotency_key="key")
INFO = SandboxInfo("sb-1", State.RUNNING, SPEC, 1.0, tags={})
SELF = TokenInfo("tk-1", "tests", "*", Scope.ADMIN, 1.0).to_dict()


@dataclass(frozen=True)
class Asked:
    """A request as it came. Names of headers in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


RESET = b""
"""An answer that is none: the connection is broken off."""

Answer = bytes | Callable[[Asked], Awaitable[bytes]]


class HttpPeer:
    """`script`: the answers in their order; the last one again and again. `asked`: what came."""

    def __init__(self, *script: Answer) -> None:
        self.script = list(script)
        self.asked: list[Asked] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                asked = await _read(reader)
                self.asked.append(asked)
                answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
                data = answer if isinstance(answer, bytes) else await answer(asked)
                if not data:
                    writer.transport.abort()
                    return
                writer.write(data)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client left, or the test is over
        finally:
            writer.close()


@asynccontextmanager
async def serving(*script: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[HttpPeer]:
    """A peer that listens at its `url`."""
    peer = HttpPeer(*script)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        await peer.serve(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    peer.url = f"http{'s' if tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield peer
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tuple(tasks), timeout=5)
        await server.wait_closed()


def no_host_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """As name servers say of hosts that are none; a machine's own may be slow to say so, or away."""

    def unknown(*_: Any, **__: Any) -> NoReturn:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)


def answer(value: Any, status: int = 200, **headers: str) -> bytes:
    """A JSON answer."""
    return raw(json.dumps(value).encode(), status, "application/json", **headers)


def refusal(error: ShoalError, **headers: str) -> bytes:
    """An error as the API tells it."""
    return raw(json.dumps(problem(error, "rq-test")).encode(), status_of(error), PROBLEM, **headers)


def raw(body: bytes, status: int = 200, content_type: str = "text/html", **headers: str) -> bytes:
    """Any answer. Headers with underscores for dashes."""
    own = {"Content-Type": content_type, "Content-Length": str(len(body)), **headers}
    lines = [f"HTTP/1.1 {status} X", *(f"{name.replace('_', '-')}: {value}" for name, value in own.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def sandbox(info: SandboxInfo = INFO) -> bytes:
    return answer(info_to_json(info))


async def _read(reader: asyncio.StreamReader) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Asked(method, path, headers, await reader.readexactly(int(headers.get("content-length", "0"))))
