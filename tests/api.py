"""The API over a cluster in memory, on a loopback port, in a thread of its own: what tests of its routes speak with."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import Any

import uvicorn
from fastapi import FastAPI

from shoal.cluster.api.app import make_app
from shoal.cluster.serving.replica_server import OPTIONS
from shoal.model import verbs
from shoal.model.access import Scope
from shoal.model.settings import ApiSettings, Settings
from tests.fakes.cluster import FakeTransport

_PATIENCE_S = 20.0


class PromptServer(uvicorn.Server):
    """Ends as soon as `end` is set; uvicorn itself looks ten times a second, which a thousand tests would wait for."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.end = asyncio.Event()

    async def main_loop(self) -> None:
        await self.on_tick(0)  # makes the headers that all answers have
        await self.end.wait()


@dataclass
class Answer:
    """A response, whole. `headers` by lower-case name."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Api:
    """The API as a client sees it: `url`, `fake` behind it, and `root`, a token that may do everything."""

    url: str
    port: int
    fake: FakeTransport
    app: FastAPI
    loop: asyncio.AbstractEventLoop
    root: str = ""
    _tokens: dict[tuple[str, Scope], str] = field(default_factory=dict)

    def token(self, environment: str = "*", scope: Scope = Scope.ADMIN, expires_in: float | None = None) -> str:
        """A token; the same one again for the same arguments, but where it expires."""
        known = (environment, scope)
        if expires_in is not None or known not in self._tokens:
            making = self.fake.ask(verbs.create_token, "test", environment, scope, expires_in)
            _, text = self.run(making)
            if expires_in is not None:
                return text
            self._tokens[known] = text
        return self._tokens[known]

    def run(self, work: Any) -> Any:
        """What a coroutine gives, in the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(_PATIENCE_S)

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str | None = "root",
        headers: dict[str, str] | None = None,
        raw: bytes | None = None,
    ) -> Answer:
        """One request over a connection of its own.

        `body` is sent as JSON; `token` None: none; `raw`: a body as it is.
        """
        sent = {} if token is None else {"Authorization": f"Bearer {self.root if token == 'root' else token}"}
        data = raw
        if raw is None and body is not None:
            data = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        connection = HTTPConnection("127.0.0.1", self.port, timeout=_PATIENCE_S)
        try:
            connection.request(method, path, data, {**sent, **(headers or {})})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def sandbox(self, token: str = "root", **body: object) -> dict[str, Any]:
        """A new sandbox, as JSON."""
        answer = self.ask("POST", "/v1/sandboxes", body, token=token)
        assert answer.status == 201, answer.body
        made: dict[str, Any] = answer.json
        return made


@contextmanager
def serving(api: ApiSettings | None = None) -> Iterator[Api]:
    """Serves the API over a new cluster in memory.

    Tokens are believed for ever so short, unless `api` says otherwise.
    """
    fake = FakeTransport()
    settings = Settings(api=api or ApiSettings(token_cache=0.05))
    app = make_app(fake, settings)
    # With its protocol named: asyncio turns Nagle's delay off only where that is so, and an answer comes in two pieces.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    listening.listen(512)
    port = listening.getsockname()[1]
    options = {**OPTIONS, "timeout_graceful_shutdown": 1}
    config = uvicorn.Config(app, loop="asyncio", lifespan="on", **options)
    server = PromptServer(config)
    loop = asyncio.new_event_loop()
    started = threading.Event()

    async def serve() -> None:
        running = asyncio.create_task(server.serve([listening]))
        while not server.started and not running.done():  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.005)
        started.set()
        await running

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="api")
    thread.start()
    try:
        assert started.wait(_PATIENCE_S)
        served = Api(f"http://127.0.0.1:{port}", port, fake, app, loop)
        served.root = served.token()
        yield served
    finally:
        loop.call_soon_threadsafe(server.end.set)
        thread.join(_PATIENCE_S)
        assert not thread.is_alive()
        loop.close()
        listening.close()
