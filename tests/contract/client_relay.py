"""The Python client on a real relay and agent, with the rest of the cluster in memory.

It goes straight to the relay, or through the HTTP API.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

from shoal.client.cluster import Client
from shoal.client.sandbox import Sandbox
from shoal.model import verbs
from shoal.model.access import ANY_ENVIRONMENT, Scope
from shoal.model.grants import Grant
from shoal.model.info import SandboxInfo
from shoal.model.spec import Resources, SandboxSpec
from shoal.transport.connections import Connections
from shoal.transport.contract import Transport
from shoal.transport.http import HttpTransport
from shoal.wire.agent import Agent
from shoal.wire.bytestream import ByteStream
from tests.contract.api_server import ApiServer
from tests.contract.relay_fixture import AgentLab, agent_lab
from tests.fakes.cluster import FakeTransport

R = TypeVar("R")
Route = Literal["relay", "http"]
SPEC = SandboxSpec("none", Resources(1.0, 1.0, 64, 64, 1, 64))


class RelayedCluster(FakeTransport):
    """A cluster in memory. All its sandboxes share one real agent; `access` gives the relay's address and a token."""

    def __init__(self, access: Callable[[], tuple[str, str]]) -> None:
        super().__init__()
        self._access = access
        self._connections = Connections(self._grant)

    async def _grant(self, sandbox_id: str) -> Grant:
        environment = (await self.ask(verbs.get, sandbox_id)).spec.environment
        address, token = self._access()
        return Grant(sandbox_id, address, token, time.time() + 60, environment)

    def _learn(self, made: verbs.Made) -> SandboxInfo:
        return made[0]  # its grant leads to no relay

    async def agent(self, sandbox_id: str) -> Agent:
        return await self._connections.agent(sandbox_id)

    async def channel(self, sandbox_id: str) -> ByteStream:
        return await self._connections.channel(sandbox_id)

    async def dial(self, sandbox_id: str, port: int) -> ByteStream:
        return await self._connections.dial(sandbox_id, port)

    async def close(self) -> None:
        await self._connections.close()


def sandbox_at(route: Route, address: str, token: str, sandbox_id: str = "") -> Sandbox:
    """A sandbox, as a user holds it: by the relay at `address`, or the one of that id by the API at that URL."""
    if route == "http":
        return Sandbox.from_id(sandbox_id, client=Client(HttpTransport(address, token)))
    return _sandbox(Client(RelayedCluster(lambda: (address, token))))


def _sandbox(client: Client) -> Sandbox:
    return Sandbox.create("sleep", "1000", cpu=1, memory=64, client=client)


class ClientLab:
    """A relay and an agent in a thread of their own, so that tests may block. Route `http` adds an API."""

    def __init__(self, loop: asyncio.AbstractEventLoop, made: AgentLab, route: Route) -> None:
        self._loop = loop
        self.agent_lab = made
        self.route = route
        self.cluster = RelayedCluster(self.relay_access)
        self.api: ApiServer | None = None
        self.token = ""
        transport: Transport = self.cluster
        if route == "http":
            self.api = self.do(ApiServer.start(self.cluster))
            _, self.token = self.do(self.cluster.ask(verbs.create_token, "tests", ANY_ENVIRONMENT, Scope.ADMIN, None))
            transport = HttpTransport(self.api.url, self.token)
        self.client = Client(transport)
        self.sandbox = Sandbox(self.client, _sandbox(Client(self.cluster)).info())

    def relay_access(self) -> tuple[str, str]:
        return self.agent_lab.relay.address, self.agent_lab.token()

    def access(self) -> tuple[Route, str, str, str]:
        """The arguments of `sandbox_at` for another process."""
        if self.api is not None:
            return self.route, self.api.url, self.token, self.sandbox.id
        return self.route, *self.relay_access(), ""

    def do(self, coroutine: Coroutine[Any, Any, R]) -> R:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def restart_relay(self, away_s: float = 0.05) -> None:
        """SIGKILL, and another one at the same address."""
        self.do(self.agent_lab.relay.kill())
        time.sleep(away_s)
        self.do(self.agent_lab.relay.start())

    def interrupt(self) -> None:
        """Breaks every connection on the route: the relay's, or the API's with its clients."""
        if self.api is None:
            self.restart_relay()
        else:
            self._loop.call_soon_threadsafe(self.api.drop_connections)

    def interrupt_often(self, pause_s: float) -> None:
        """Breaks them here and there, three times."""
        for interrupt in (self.interrupt, self.restart_relay, self.interrupt):
            time.sleep(pause_s)
            interrupt()

    def close(self) -> None:
        self.client.close()
        if self.api is not None:
            self.do(self.api.stop())
        self.do(self.cluster.close())


@contextmanager
def client_lab(route: Route = "relay") -> Iterator[ClientLab]:
    """A relay, an agent and a sandbox; nothing is left of them afterwards."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="client lab")
    thread.start()
    context = agent_lab()

    def do(coroutine: Coroutine[Any, Any, R]) -> R:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(120)

    try:
        opened = do(context.__aenter__())
        try:
            made = ClientLab(loop, opened, route)
            try:
                yield made
            finally:
                made.close()
        finally:
            do(context.__aexit__(None, None, None))
    finally:
        do(loop.shutdown_asyncgens())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
