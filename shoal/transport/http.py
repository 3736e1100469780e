"""The transport through the HTTP API: control by requests, data by the agent's own protocol over a WebSocket.

So streams, offsets and resuming after a broken connection work as they do inside the cluster.
"""

from __future__ import annotations

import asyncio
import builtins
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar, cast
from urllib.parse import quote

from shoal.model import verbs
from shoal.model.access import ANY_ENVIRONMENT, MAIN_ENVIRONMENT, SandboxEvent, TokenInfo
from shoal.model.cursors import decode_cursor, decode_sorted, encode_cursor
from shoal.model.errors import FailedPrecondition, SandboxEnded, ShoalError, Unauthenticated, Unavailable
from shoal.model.http import error_from_problem
from shoal.model.ids import IMAGE
from shoal.model.images import ImageListing, ImagePage, ImageRecord
from shoal.model.info import Listing, LogChunk, Page, SandboxInfo
from shoal.model.sandbox_json import info_from_json, spec_to_json
from shoal.model.sorting import NEWEST
from shoal.model.spec import SandboxSpec
from shoal.model.validate import check_key
from shoal.model.verbs import Retry, Verb
from shoal.transport.agent_pool import Agents, Opened
from shoal.transport.contract import Transport
from shoal.transport.http_calls import HttpCalls
from shoal.transport.http_events import events_after, newest_event, next_events
from shoal.transport.http_server import server
from shoal.transport.http_socket import SocketStream, open_connection, open_socket
from shoal.transport.http_verbs import decoded, decoder, request_for, result_of
from shoal.transport.rollback import Rollback, with_key
from shoal.wire.agent import Agent
from shoal.wire.bytestream import ByteStream

P = ParamSpec("P")
R = TypeVar("R")

MAX_BATCH = 1000
"""Creates in one call; more of them are several calls."""

MAX_PAGE = 1000
"""Sandboxes, or images, in one page of a listing."""

_BATCH_BYTES = (1 << 20) - 256
"""Bytes of creates in one call, so that no call keeps either end busy for long."""

_EVENTS = "/v1/events"
_LONGEST_WAIT_S = 30.0
_LOGS_S = 30.0
_FILES_S = 60.0
_UNDO_AT_ONCE = 16


class HttpTransport(Transport):
    """Reaches the API at `url`. Nothing is sent before the first call; `open` also checks that the API is there and
    takes the token.

    `token`: an API token. `ca`: a file of the certificates to trust in place of the system's. Raises `InvalidRequest`,
    `Unauthenticated`.
    """

    def __init__(self, url: str, token: str | None = None, ca: str | None = None) -> None:
        self.calls = HttpCalls(server(url, token, ca))
        self._agents = Agents(self._open_agent)
        self._special: dict[Verb[..., Any], Callable[..., Awaitable[Any]]] = {
            verbs.list_sandboxes: self._list_sandboxes,
            verbs.list_images: self._list_images,
            verbs.logs: self._logs,
            verbs.events: self._events,
            verbs.last_event: self._last_event,
            verbs.put_build_files: self._put_build_files,
        }
        self._rollback = Rollback()
        self._whoami: TokenInfo | None = None

    @classmethod
    async def open(cls, url: str, token: str | None = None, ca: str | None = None) -> HttpTransport:
        """Makes one call, so that a wrong address, token or certificate is noticed at once.

        Raises `InvalidRequest`, `Unauthenticated`, `Unavailable` (nobody answers), `FailedPrecondition` (it is no API
        of Shoal's, or its certificate is not trusted).
        """
        transport = cls(url, token, ca)
        try:
            await transport.whoami(patience_s=0)
        except Unauthenticated as error:
            await transport.close()
            if token is None:
                raise Unauthenticated(
                    f"{transport.url} needs a token: pass `token=`, set SHOAL_TOKEN, or `shoal login {transport.url}`"
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

    async def whoami(self, *, patience_s: float = 20.0) -> TokenInfo:
        """This transport's token as the API knows it; asked for once."""
        if self._whoami is None:
            data = await self.calls.json("GET", "/v1/tokens/self", patience_s=patience_s)
            self._whoami = decoded(decoder(TokenInfo), data)
        return self._whoami

    async def default_environment(self) -> str:
        own = (await self.whoami()).environment
        return MAIN_ENVIRONMENT if own == ANY_ENVIRONMENT else own

    # Control

    async def ask(self, verb: Verb[P, R], /, *args: P.args, **options: P.kwargs) -> R:
        special = self._special.get(verb)
        if special is not None:
            return cast(R, await special(*args, **options))
        if not verb.path:
            raise FailedPrecondition(f"{verb.name} is asked inside the cluster, not over HTTP", state="http")
        arguments = verb.named(args, options)
        takes = verb.takes if isinstance(verb.takes, float) else max(0.001, arguments[verb.takes])
        path, query, body = request_for(verb, arguments)
        again = verb.retry is not Retry.NEVER
        answer = await self.calls.call(verb.method, path, query=query, body=body, again=again, takes_s=takes)
        return cast(R, None if answer.status == 204 else result_of(verb, answer.json()))

    async def create(self, spec: SandboxSpec, *, deadline: float, wait: bool = True) -> SandboxInfo:
        spec = with_key(spec)
        try:
            return await self._create(spec, deadline, wait)
        except asyncio.CancelledError:
            if wait:
                await self._rollback.run(self._end_made([spec], deadline))
            raise

    async def create_many(
        self, specs: Sequence[SandboxSpec], *, deadline: float, wait: bool = True
    ) -> Sequence[SandboxInfo | ShoalError]:
        wanted = [with_key(spec) for spec in specs]
        for spec in wanted:
            _key(spec)  # before the first of several calls, whose sandboxes would stay
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
                    made += [error] * len(batch)  # those of the earlier calls exist, and the caller must get them
        except asyncio.CancelledError:
            if wait:
                await self._rollback.run(self._end_made(wanted, deadline))
            raise
        return made

    async def fork(
        self, sandbox_id: str, count: int, *, deadline: float, key: str, memory: bool = False
    ) -> Sequence[SandboxInfo]:
        path, query, body = request_for(
            verbs.fork, {"sandbox_id": sandbox_id, "count": count, "deadline": deadline, "key": key, "memory": memory}
        )
        takes = deadline + verbs.SNAPSHOT_S
        data = await self.calls.json("POST", path, query=query, body=body, for_room=True, takes_s=takes)
        return decoded(lambda answer: [info_from_json(each) for each in answer["sandboxes"]], data)

    # Verbs whose routes are not plain

    async def _list_sandboxes(self, listing: Listing) -> Page:
        query = {
            "environment": listing.environment,
            "tag": [f"{_before_colon(key)}:{value}" for key, value in listing.tags.items()],
            "state": [state.value for state in listing.states],
            "region": listing.region,
            "image": listing.image,
            "search": listing.search,
            "sort": None if listing.sort == NEWEST else listing.sort,
            "include_ended": listing.include_ended,
            "limit": min(listing.limit, MAX_PAGE),
            "cursor": None if listing.before is None else encode_cursor(listing.before),
        }
        return decoded(_page, await self.calls.json("GET", verbs.list_sandboxes.path, query=query))

    async def _list_images(self, listing: ImageListing) -> ImagePage:
        query = {
            "environment": listing.environment,
            "kind": None if listing.kind is None else listing.kind.value,
            "name": listing.name,
            "limit": min(listing.limit, MAX_PAGE),
            "cursor": None if listing.before is None else encode_cursor(listing.before),
        }
        return decoded(_image_page, await self.calls.json("GET", verbs.list_images.path, query=query))

    async def _logs(self, sandbox_id: str, fd: int, offset: int) -> LogChunk:
        query = {"stream": "stdout" if fd == 1 else "stderr", "offset": offset}
        answer = await self.calls.call("GET", f"{_path(sandbox_id)}/logs", query=query, takes_s=_LOGS_S)
        start = decoded(int, answer.headers.get("X-Shoal-Offset", offset))
        return LogChunk(start, answer.body, True)

    async def _events(
        self, after: int | None, sandbox_id: str | None = None, environment: str | None = None, wait_s: float = 0.0
    ) -> builtins.list[SandboxEvent]:
        path = _EVENTS if sandbox_id is None else f"{_path(sandbox_id)}/events"
        query: dict[str, int | str] = {"after": await self._last_event() if after is None else after}
        if sandbox_id is None and environment is not None:
            query["environment"] = environment
        found = [] if after is None else await events_after(self.calls, path, query)
        if found or wait_s <= 0:
            return found
        return await next_events(self.calls, path, query, min(wait_s, _LONGEST_WAIT_S))

    async def _last_event(self) -> int:
        return await newest_event(self.calls, _EVENTS)

    async def _put_build_files(self, digest: str, size: int, offset: int, data: bytes) -> None:
        path, query = f"/v1/images/builds/files/{quote(digest)}", {"size": size, "offset": offset}
        await self.calls.call("PUT", path, query=query, body=data, takes_s=_FILES_S)

    # Data

    async def agent(self, sandbox_id: str) -> Agent:
        try:
            return await self._agents.get(sandbox_id)
        except SandboxEnded:
            self.forget(sandbox_id)
            raise

    async def channel(self, sandbox_id: str) -> ByteStream:
        return SocketStream(await open_socket(self.calls, f"{_path(sandbox_id)}/connect", heartbeat=False))

    async def dial(self, sandbox_id: str, port: int) -> ByteStream:
        return SocketStream(await open_socket(self.calls, f"{_path(sandbox_id)}/ports/{int(port)}", heartbeat=False))

    async def _open_agent(self, sandbox_id: str) -> Opened:
        return Opened(await open_connection(self.calls, f"{_path(sandbox_id)}/connect"))

    def forget(self, sandbox_id: str) -> None:
        self._agents.forget(sandbox_id)

    async def close(self) -> None:
        await self._rollback.settle()
        await self._agents.close()
        await self.calls.close()

    # Creates and their rollback

    async def _create(self, spec: SandboxSpec, deadline: float, wait: bool) -> SandboxInfo:
        data = await self.calls.json(
            "POST",
            verbs.create.path,
            query={"wait": wait},
            body=spec_to_json(spec),
            headers={"Idempotency-Key": _key(spec)},
            for_room=wait,
            deadline_s=deadline,
        )
        return decoded(info_from_json, data)

    async def _create_batch(
        self, sandboxes: builtins.list[dict[str, Any]], deadline: float, wait: bool
    ) -> builtins.list[SandboxInfo | ShoalError]:
        body = {"sandboxes": sandboxes, "wait": wait, "deadline": deadline}
        data = await self.calls.json("POST", verbs.create_many.path, body=body, for_room=wait, takes_s=deadline)
        return decoded(lambda answer: [_result(each) for each in answer["results"]], data)

    async def _end_made(self, specs: Sequence[SandboxSpec], deadline: float) -> None:
        """Ends what creates have made or are making: the same idempotency keys give the same sandboxes."""
        at_once = asyncio.Semaphore(_UNDO_AT_ONCE)

        async def end(sandbox_id: str) -> None:
            async with at_once:
                await self.terminate(sandbox_id)

        for batch in _batches(specs):
            found = await self._create_batch(batch, deadline, False)
            ids = [info.id for info in found if isinstance(info, SandboxInfo) and not info.ended]
            await asyncio.gather(*map(end, ids), return_exceptions=True)


def _batches(specs: Sequence[SandboxSpec]) -> Iterator[list[dict[str, Any]]]:
    """The creates as JSON, in order, split into calls of a size that the API takes."""
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


def _page(data: Any) -> Page:
    cursor = data.get("next_cursor")
    sandboxes = [info_from_json(each) for each in data["sandboxes"]]
    return Page(sandboxes, None if cursor is None else decode_sorted(cursor))


def _image_page(data: Any) -> ImagePage:
    cursor = data.get("next_cursor")
    images = [ImageRecord.from_dict(each) for each in data["images"]]
    return ImagePage(images, None if cursor is None else decode_cursor(cursor, IMAGE))


def _result(data: Any) -> SandboxInfo | ShoalError:
    error = data.get("error")
    return info_from_json(data["sandbox"]) if error is None else error_from_problem(error)


def _before_colon(key: str) -> str:
    return key.replace("%", "%25").replace(":", "%3A")


def _path(sandbox_id: str) -> str:
    return f"/v1/sandboxes/{quote(sandbox_id, safe='')}"


def _key(spec: SandboxSpec) -> str:
    check_key(spec.idempotency_key)
    return cast(str, spec.idempotency_key)
