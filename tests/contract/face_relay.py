"""The face on a real relay and a real agent, without a cluster: control is one sandbox that is always there."""

from __future__ import annotations

import asyncio
import builtins
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from shoal.client import Client
from shoal.model.errors import FailedPrecondition
from shoal.model.grants import Grant
from shoal.model.info import Listing, SandboxInfo
from shoal.model.spec import Resources, SandboxSpec
from shoal.model.states import State
from shoal.sandbox import Sandbox
from shoal.transport.connections import Connections
from shoal.transport.contract import LogChunk
from shoal.transport.fake import FakeTransport
from shoal.wire.agent import Agent
from tests.contract.relay_fixture import Bed, bed

R = TypeVar("R")
SPEC = SandboxSpec("none", Resources(1.0, 1.0, 64, 64, 1, 64))


class OneSandbox(FakeTransport):
    """A cluster of one sandbox: `access` gives the relay's address and a token."""

    def __init__(self, access: Callable[[], tuple[str, str]]) -> None:
        super().__init__()
        self._access = access
        self._connections = Connections(self._grant)
        self.info = SandboxInfo("sb-test", State.RUNNING, SPEC, time.time())

    async def _grant(self, sandbox_id: str) -> Grant:
        address, token = self._access()
        return Grant(sandbox_id, address, token, time.time() + 60)

    async def agent(self, sandbox_id: str) -> Agent:
        return await self._connections.agent(sandbox_id)

    async def close(self) -> None:
        await self._connections.close()

    async def create(self, spec: SandboxSpec, *, deadline: float, wait: bool = True) -> SandboxInfo:
        return self.info

    async def get(self, sandbox_id: str) -> SandboxInfo:
        return self.info

    async def find(self, name: str, environment: str) -> SandboxInfo:
        return self.info

    async def list(self, listing: Listing) -> builtins.list[SandboxInfo]:
        return [self.info]

    async def set_tags(self, sandbox_id: str, tags: Mapping[str, str]) -> SandboxInfo:
        return self.info

    async def terminate(self, sandbox_id: str) -> SandboxInfo:
        return self.info

    async def wait(self, sandbox_id: str, timeout: float | None) -> SandboxInfo:
        return self.info

    async def logs(self, sandbox_id: str, fd: int, offset: int) -> LogChunk:
        raise FailedPrecondition("it lives", state="running")


def sandbox_at(access: Callable[[], tuple[str, str]]) -> Sandbox:
    """The one sandbox, as a user holds it."""
    transport = OneSandbox(access)
    return Sandbox(Client(transport), transport.info)


class Ground:
    """A relay and an agent that live in a thread of their own, so that tests may block."""

    def __init__(self, loop: asyncio.AbstractEventLoop, made: Bed) -> None:
        self._loop = loop
        self.bed = made
        self.sandbox = sandbox_at(self.access)

    def access(self) -> tuple[str, str]:
        return self.bed.relay.address, self.bed.token()

    def do(self, coroutine: Coroutine[Any, Any, R]) -> R:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def restart_relay(self, away_s: float = 0.05) -> None:
        """SIGKILL, and another one at the same address."""
        self.do(self.bed.relay.kill())
        time.sleep(away_s)
        self.do(self.bed.relay.start())


@contextmanager
def ground() -> Iterator[Ground]:
    """A relay, an agent and a sandbox; nothing is left of them afterwards."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="ground")
    thread.start()
    context = bed()

    def do(coroutine: Coroutine[Any, Any, R]) -> R:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(120)

    try:
        made = Ground(loop, do(context.__aenter__()))
        try:
            yield made
        finally:
            made.sandbox._client.close()
            do(context.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
