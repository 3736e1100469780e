"""A replica's servers: on unix sockets, gone from there before they end."""

from __future__ import annotations

import asyncio
import http.client
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from shoal.cluster.serving import replica_server
from shoal.cluster.serving.replica_server import Apps, ReplicaServer
from shoal.model.errors import Unavailable

pytestmark = pytest.mark.timeout(60)


async def public(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    request = Request(scope)
    await asyncio.sleep(float(request.query_params.get("sleep", "0")))
    await PlainTextResponse(request.client.host if request.client else "nobody")(scope, receive, send)


def internal() -> ASGIApp:
    return Response(status_code=204)


async def make() -> Apps:
    return public, internal()


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("replica", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


def ask(path: Path, target: str = "/", **headers: str) -> tuple[int, str]:
    connection = UnixConnection(path)
    try:
        connection.request("GET", target, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(replica_server, "UNKNOWN_S", 0.1)
    made = Path(tempfile.mkdtemp(prefix="shoal-", dir="/tmp"))
    yield made / "api"
    shutil.rmtree(made)


def test_it_answers_under_both_names_and_believes_the_gateway(directory: Path) -> None:
    server = ReplicaServer(directory, make)
    server.start()
    try:
        assert directory.stat().st_mode & 0o077 == 0
        assert sorted(path.suffix for path in directory.iterdir()) == [".internal", ".sock"]
        assert ask(server.public, X_Forwarded_For="203.0.113.7") == (200, "203.0.113.7")
        assert ask(server.internal) == (204, "")
        assert asyncio.run(server.answers())
    finally:
        server.stop()
    assert not asyncio.run(server.answers())
    server.stop()


def test_one_that_goes_is_not_found_any_more_and_ends_what_it_does(directory: Path) -> None:
    server = ReplicaServer(directory, make)
    server.start()
    answers: list[tuple[int, str]] = []
    asking = threading.Thread(target=lambda: answers.append(ask(server.public, "/?sleep=1")))
    asking.start()
    time.sleep(0.3)
    server.stop()
    asking.join(20)
    assert answers == [(200, "nobody")]
    assert list(directory.iterdir()) == []


def test_what_a_killed_one_left_is_removed_by_the_next(directory: Path) -> None:
    directory.mkdir()
    for name in ("dead.sock", "dead.internal"):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(directory / name))
    first, second = ReplicaServer(directory, make), ReplicaServer(directory, make)
    first.start()
    second.start()
    try:
        assert {path.stem for path in directory.iterdir()} == {first.public.stem, second.public.stem}
    finally:
        first.stop()
        second.stop()


def test_one_that_cannot_be_made_says_why(directory: Path) -> None:
    async def broken() -> Apps:
        raise Unavailable("there is no cluster")

    with pytest.raises(Unavailable, match="there is no cluster"):
        ReplicaServer(directory, broken).start()
