"""The transport through the HTTP API: control by its requests, data by the agent's own protocol over a WebSocket.

So all that goes on inside a sandbox is spoken as inside the cluster: streams, offsets, and going on after a connection that broke.
"""

from __future__ import annotations

import asyncio
import builtins
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast
from urllib.parse import quote

from shoal.model.access import ANY_ENVIRONMENT, MAIN_ENVIRONMENT, TokenInfo, Tunnel
from shoal.model.cursors import encode_cursor
from shoal.model.errors import SandboxEnded, ShoalError, Unauthenticated, Unavailable
from shoal.model.http import error_from_problem
from shoal.model.info import Listing, NodeInfo, SandboxInfo
from shoal.model.sandbox_json import spec_to_json
from shoal.model.settings import SandboxDefaults
from shoal.model.spec import SandboxSpec
from shoal.model.validate import check_key
from shoal.transport import http_json
from shoal.transport.agent_pool import Agents, Opened
from shoal.transport.contract import LogChunk, Transport
from shoal.transport.http_admin import HttpAdmin
from shoal.transport.http_calls import HttpCalls
from shoal.transport.http_server import server
from shoal.transport.http_socket import SocketStream, open_connection, open_socket
from shoal.transport.rollback import Undoing, with_key
from shoal.wire.agent import Agent
from shoal.wire.bytestream import ByteStream

MAX_BATCH = 1000
"""Creates in one call; more of them are several calls."""

_BATCH_BYTES = (1 << 20) - 256
"""Bytes of creates in one call, likewise: neither end is to be held up by one of them for long."""

_POLL_S = 30.0
"""How long one call of a `wait` may take; longer waits are made of several."""

_TERMINATE_S = 60.0
_UNDO_AT_ONCE = 16


class HttpTransport(Transport):
    """A way to the API at `url`. Nothing is sent before the first call; `open` also looks whether it is there and takes the token.

    `token`: an API token. `ca`: a file of the certificates to trust in place of the system's. Raises `InvalidRequest`, `Unauthenticated`.
    """

    def __init__(self, url: str, token: str | None = None, ca: str | None = None) -> None:
        self.calls = HttpCalls(server(url, token, ca))
        self._agents = Agents(self._open_agent)
        self._admin = HttpAdmin(self.calls)
        self._undoing = Undoing()
        self._whoami: TokenInfo | None = None

    @classmethod
    async def open(cls, url: str, token: str | None = None, ca: str | None = None) -> HttpTransport:
        """With one call made: so that the first mistake (address, token, certificate) is told at once.

        Raises `InvalidRequest`, `Unauthenticated`, `Unavailable` (nobody answers there), `FailedPrecondition` (it is no API of Shoal's, or its
        certificate is not trusted).
        """
        transport = cls(url, token, ca)
        try:
            await transport.whoami(patience_s=0)
        except Unauthenticated as error:
            await transport.close()
            if token is None:
                raise Unauthenticated(
                    f"{transport.url} wants a token: pass `token=`, set SHOAL_TOKEN, or run `shoal login {transport.url}`"
                ) from None
            raise Unauthenticated(
                f"{transport.url} does not take the token ({error.message}); make a new one with `shoal tokens create`"
            ) from None
        except BaseException as error:
            await transport.close()
            if isinstance(error, Unavailable) and error.fields.get("sent") and transport.url.startswith("http:"):
                raise Unavailable(f"{error.message}; if it speaks TLS, write https://", **error.fields) from None
            raise
        return transport

    @property
    def url(self) -> str:
        """The API's, without a slash at its end."""
        return self.calls.server.url

    @property
    def admin(self) -> HttpAdmin:
        return self._admin

    async def whoami(self, *, patience_s: float = 20.0) -> TokenInfo:
        """What the API knows of this transport's token; asked for once."""
        if self._whoami is None:
            data = await self.calls.json("GET", "/v1/tokens/self", patience_s=patience_s)
            self._whoami = http_json.decoded(http_json.token, data)
        return self._whoami

    async def default_environment(self) -> str:
        own = (await self.whoami()).environment
        return MAIN_ENVIRONMENT if own == ANY_ENVIRONMENT else own

    # Control

    async def defaults(self) -> SandboxDefaults:
        data = await self.calls.json("GET", "/v1/defaults")
        known = SandboxDefaults.model_fields
        return http_json.decoded(lambda d: SandboxDefaults(**{k: v for k, v in d.items() if k in known}), data)

    async def create(self, spec: SandboxSpec, *, deadline: float, wait: bool = True) -> SandboxInfo:
        spec = with_key(spec)
        try:
            return await self._create(spec, deadline, wait)
        except asyncio.CancelledError:
            if wait:
                await self._undoing.undo(self._give_up([spec], deadline))
            raise

    async def create_many(
        self, specs: Sequence[SandboxSpec], *, deadline: float, wait: bool = True
    ) -> Sequence[SandboxInfo | ShoalError]:
        wanted = [with_key(spec) for spec in specs]
        for spec in wanted:
            _key(spec)  # before the first call: of several, the first ones' sandboxes would stay
        end = time.monotonic() + deadline
        made: list[SandboxInfo | ShoalError] = []
        try:
            for batch in _batches(wanted):
                left = max(0.001, end - time.monotonic())
                try:
                    made += await self._create_batch(batch, left, wait)
                except ShoalError as error:
                    if not made:
                        raise
                    made += [error] * len(batch)  # those before are there, and their caller must know of them
        except asyncio.CancelledError:
            if wait:
                await self._undoing.undo(self._give_up(wanted, deadline))
            raise
        return made

    async def get(self, sandbox_id: str) -> SandboxInfo:
        return http_json.decoded(http_json.sandbox, await self.calls.json("GET", _path(sandbox_id)))

    async def find(self, name: str, environment: str) -> SandboxInfo:
        path = f"/v1/sandboxes/by-name/{quote(name, safe='')}"
        data = await self.calls.json("GET", path, query={"environment": environment})
        return http_json.decoded(http_json.sandbox, data)

    async def list(self, listing: Listing) -> builtins.list[SandboxInfo]:
        query = {
            "environment": listing.environment,
            "tag": [f"{_before_colon(key)}:{value}" for key, value in listing.tags.items()],
            "state": [state.value for state in listing.states],
            "region": listing.region,
            "include_ended": listing.include_ended,
        }
        found: list[SandboxInfo] = []
        cursor = None if listing.before is None else encode_cursor(listing.before)
        while len(found) < listing.limit:
            page = {**query, "limit": min(listing.limit - len(found), MAX_BATCH), "cursor": cursor}
            data = await self.calls.json("GET", "/v1/sandboxes", query=page)
            found += http_json.many("sandboxes", http_json.sandbox, data)
            cursor = data.get("next_cursor")
            if cursor is None:
                break
        return found

    async def set_tags(self, sandbox_id: str, tags: Mapping[str, str]) -> SandboxInfo:
        data = await self.calls.json("PUT", f"{_path(sandbox_id)}/tags", body={"tags": dict(tags)})
        return http_json.decoded(http_json.sandbox, data)

    async def terminate(self, sandbox_id: str) -> SandboxInfo:
        data = await self.calls.json("DELETE", _path(sandbox_id), takes_s=_TERMINATE_S)
        self._agents.forget(sandbox_id)
        return http_json.decoded(http_json.sandbox, data)

    async def wait(self, sandbox_id: str, timeout: float | None) -> SandboxInfo:
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _POLL_S if end is None else min(_POLL_S, max(0.0, end - time.monotonic()))
            query = {"timeout": f"{left:.3f}"}
            data = await self.calls.json("GET", f"{_path(sandbox_id)}/wait", query=query, takes_s=max(left, 0.001))
            info = http_json.decoded(http_json.sandbox, data)
            if info.ended:
                self._agents.forget(sandbox_id)
                return info
            if end is not None and time.monotonic() >= end:
                return info

    async def logs(self, sandbox_id: str, fd: int, offset: int) -> LogChunk:
        query = {"stream": "stdout" if fd == 1 else "stderr", "offset": offset}
        answer = await self.calls.call("GET", f"{_path(sandbox_id)}/logs", query=query, takes_s=_POLL_S)
        start = http_json.decoded(int, answer.headers.get("X-Shoal-Offset", offset))
        return LogChunk(start, answer.body, True)

    async def nodes(self) -> builtins.list[NodeInfo]:
        return http_json.many("nodes", http_json.node, await self.calls.json("GET", "/v1/nodes"))

    # Tunnels

    async def expose(self, sandbox_id: str, port: int, *, protocol: str, public: bool) -> Tunnel:
        body = {"port": port, "protocol": protocol, "public": public}
        data = await self.calls.json("POST", f"{_path(sandbox_id)}/tunnels", body=body)
        return http_json.decoded(http_json.tunnel, data)

    async def unexpose(self, sandbox_id: str, port: int) -> None:
        await self.calls.call("DELETE", f"{_path(sandbox_id)}/tunnels/{int(port)}")

    async def tunnels(self, sandbox_id: str) -> Sequence[Tunnel]:
        data = await self.calls.json("GET", f"{_path(sandbox_id)}/tunnels")
        return http_json.many("tunnels", http_json.tunnel, data)

    async def tunnel_token(self, sandbox_id: str, port: int, expires_in: float) -> Tunnel:
        body = {"expires_in": expires_in}
        data = await self.calls.json("POST", f"{_path(sandbox_id)}/tunnels/{int(port)}/token", body=body)
        return http_json.decoded(http_json.tunnel, data)

    # Data

    async def agent(self, sandbox_id: str) -> Agent:
        try:
            return await self._agents.get(sandbox_id)
        except SandboxEnded:
            self._agents.forget(sandbox_id)
            raise

    async def channel(self, sandbox_id: str) -> ByteStream:
        return SocketStream(await open_socket(self.calls, f"{_path(sandbox_id)}/connect", heartbeat=False))

    async def dial(self, sandbox_id: str, port: int) -> ByteStream:
        return SocketStream(await open_socket(self.calls, f"{_path(sandbox_id)}/ports/{int(port)}", heartbeat=False))

    async def _open_agent(self, sandbox_id: str) -> Opened:
        return Opened(await open_connection(self.calls, f"{_path(sandbox_id)}/connect"))

    async def close(self) -> None:
        await self._undoing.settle()
        await self._agents.close()
        await self.calls.close()

    # Creates, and those that are given up

    async def _create(self, spec: SandboxSpec, deadline: float, wait: bool) -> SandboxInfo:
        data = await self.calls.json(
            "POST",
            "/v1/sandboxes",
            query={"wait": wait},
            body=spec_to_json(spec),
            headers={"Idempotency-Key": _key(spec)},
            for_room=wait,
            deadline_s=deadline,
        )
        return http_json.decoded(http_json.sandbox, data)

    async def _create_batch(
        self, sandboxes: builtins.list[dict[str, Any]], deadline: float, wait: bool
    ) -> builtins.list[SandboxInfo | ShoalError]:
        body = {"sandboxes": sandboxes, "wait": wait, "deadline": deadline}
        data = await self.calls.json("POST", "/v1/sandboxes/batch", body=body, for_room=wait, takes_s=deadline)
        return http_json.many("results", _result, data)

    async def _give_up(self, specs: Sequence[SandboxSpec], deadline: float) -> None:
        """Ends what creates have made or are making: the same keys again tell which these are."""
        at_once = asyncio.Semaphore(_UNDO_AT_ONCE)

        async def end(sandbox_id: str) -> None:
            async with at_once:
                await self.terminate(sandbox_id)

        for batch in _batches(specs):
            found = await self._create_batch(batch, deadline, False)
            ids = [info.id for info in found if isinstance(info, SandboxInfo) and not info.ended]
            await asyncio.gather(*map(end, ids), return_exceptions=True)


def _batches(specs: Sequence[SandboxSpec]) -> Iterator[list[dict[str, Any]]]:
    """The creates as the API takes them, in their order: of each call's no more than fit."""
    batch: list[dict[str, Any]] = []
    size = 0
    for spec in specs:
        item = {**spec_to_json(spec), "idempotency_key": _key(spec)}
        more = len(json.dumps(item)) + 2
        if batch and (len(batch) == MAX_BATCH or size + more > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += more
    if batch:
        yield batch


def _result(data: Any) -> SandboxInfo | ShoalError:
    error = data.get("error")
    return http_json.sandbox(data["sandbox"]) if error is None else error_from_problem(error)


def _before_colon(key: str) -> str:
    return key.replace("%", "%25").replace(":", "%3A")


def _path(sandbox_id: str) -> str:
    return f"/v1/sandboxes/{quote(sandbox_id, safe='')}"


def _key(spec: SandboxSpec) -> str:
    check_key(spec.idempotency_key)
    return cast(str, spec.idempotency_key)
