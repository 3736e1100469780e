"""The API in front of a real relay and a real agent, all in the test's own loop, and an HTTP client at it."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import aiohttp

from shoal.model import verbs
from shoal.model.access import ANY_ENVIRONMENT, Scope
from shoal.model.errors import SandboxEnded
from shoal.model.grants import SCOPE_TUNNEL
from shoal.model.info import LogChunk
from shoal.model.settings import ApiSettings, Settings
from shoal.model.verbs import Verb
from shoal.wire.agent import Agent
from tests.contract.api_server import ApiServer
from tests.contract.client_relay import RelayedCluster
from tests.contract.relay_fixture import SCOPES, AgentLab, agent_lab
from tests.unit.builders import spec

P = ParamSpec("P")
R = TypeVar("R")


class EndingCluster(RelayedCluster):
    """Its sandboxes end when a test says so, and leave behind what it says."""

    def __init__(self, access: Callable[[], tuple[str, str]]) -> None:
        super().__init__(access)
        self._kept: bytes | None = None
        self._seen: set[Agent] = set()

    def end(self, stdout: bytes) -> None:
        """All sandboxes have ended, their connections broke, and their own command had written `stdout`."""
        self._kept = stdout
        for agent in self._seen:
            agent.connection.abort()

    async def agent(self, sandbox_id: str) -> Agent:
        if self._kept is not None:
            raise SandboxEnded("it has ended", reason="completed", exit_code=0)
        agent = await super().agent(sandbox_id)
        self._seen.add(agent)
        return agent

    async def ask(self, verb: Verb[P, R], /, *args: P.args, **options: P.kwargs) -> R:
        if verb is not verbs.logs or self._kept is None:
            return await super().ask(verb, *args, **options)
        _, fd, offset = verb.in_order(args, options)
        return cast(R, LogChunk(offset, self._kept[offset:] if fd == 1 else b"", True))


@dataclass
class Lab:
    """`at`: the URL of the sandbox. `http`: a session that carries a token of the whole cluster."""

    agent_lab: AgentLab
    cluster: EndingCluster
    server: ApiServer
    sandbox_id: str
    token: str
    http: aiohttp.ClientSession

    @property
    def at(self) -> str:
        return f"{self.server.url}/v1/sandboxes/{self.sandbox_id}"

    @property
    def directory(self) -> Path:
        """A place for files that the sandbox sees too."""
        return self.agent_lab.directory

    async def exec(self, command: str | list[str], **more: Any) -> dict[str, Any]:
        """What `exec` answers, having checked that it went well."""
        body = {"command" if isinstance(command, str) else "argv": command, **more}
        async with self.http.post(f"{self.at}/exec", **large_json(body)) as answer:
            data: dict[str, Any] = await answer.json(content_type=None)
            assert answer.status == 200, data
            return data

    async def start(self, command: str | list[str], **more: Any) -> str:
        """The id of a process that was started."""
        body = {"command" if isinstance(command, str) else "argv": command, **more}
        async with self.http.post(f"{self.at}/processes", **large_json(body)) as answer:
            data = await answer.json(content_type=None)
            assert answer.status == 201, data
            return str(data["id"])

    async def problem(self, method: str, path: str, **more: Any) -> tuple[int, str, str | None]:
        """Status, code and field of a request that is refused."""
        async with self.http.request(method, f"{self.at}{path}", **more) as answer:
            data = await answer.json(content_type=None)
            assert answer.content_type == "application/problem+json", data
            assert data["status"] == answer.status
            return answer.status, data["code"], data.get("field")

    async def output(self, process_id: str, **params: Any) -> bytes:
        """All of a process's output from an offset on."""
        async with self.http.get(f"{self.at}/processes/{process_id}/output", params=params) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.read()

    async def ended(self, process_id: str) -> dict[str, Any]:
        """How a process ended."""
        async with self.http.get(f"{self.at}/processes/{process_id}/wait?timeout=30") as answer:
            data: dict[str, Any] = await answer.json()
            assert not data["running"]
            return data

    async def open_streams(self) -> int:
        """How many of the agent's streams this replica holds open."""
        return (await self.cluster.agent(self.sandbox_id)).connection.open_streams


def large_json(body: Any) -> dict[str, Any]:
    """The arguments of a request with a JSON body of any size: aiohttp warns of large ones that are not files."""
    return {"data": io.BytesIO(json.dumps(body).encode()), "headers": {"Content-Type": "application/json"}}


async def until(condition: Callable[[], Awaitable[bool]], what: str, within_s: float = 10) -> None:
    """Returns once `condition` holds."""
    end = time.monotonic() + within_s
    while not await condition():
        assert time.monotonic() < end, f"{what}: not within {within_s} s"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def lab(*command: str, gateway: bool = False) -> AsyncIterator[Lab]:
    """A relay, an agent, an API (with `gateway`: behind one) and a client; nothing is left of them afterwards."""
    async with agent_lab() as made:
        cluster = EndingCluster(lambda: (made.relay.address, made.token(scopes=(*SCOPES, SCOPE_TUNNEL))))
        settings = Settings(api=ApiSettings(token_cache=0.1))
        start = ApiServer.start_behind_gateway if gateway else ApiServer.start
        server = await start(cluster, settings)
        try:
            info = await cluster.create(spec(command=command), deadline=5)
            _, token = await cluster.ask(verbs.create_token, "tests", ANY_ENVIRONMENT, Scope.ADMIN, None)
            timeout = aiohttp.ClientTimeout(total=60)
            headers = {"Authorization": f"Bearer {token}"}
            async with aiohttp.ClientSession(headers=headers, timeout=timeout, auto_decompress=False) as http:
                yield Lab(made, cluster, server, info.id, token, http)
        finally:
            await server.stop()
            await cluster.close()
