"""Authentication: API tokens, and the checks that replace them if authentication is off.

A token is looked up by its id. The result, also that there is none, is kept for `api.token_cache` seconds, so that
requests cost the controller nothing. After half that time the next use looks the token up again in the background. Its
secret and its expiry are checked each time.

What is no token costs nothing but its check: a token's text ends with a checksum, and of those who guess all the same
only so many are looked up (`failure_bound.py`). Beyond that, one list of the ids that exist, at most once a second,
tells which token is worth a lookup, so that nobody's valid token is turned away for what others send.

While the controller does not answer, its last answer is used for up to `TRUST_S`: the controller is not on the path of
exec. A token cannot be revoked meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import MutableMapping
from typing import Annotated
from urllib.parse import urlsplit

from cachetools import LRUCache, TTLCache
from fastapi import params
from starlette.requests import HTTPConnection

from shoal.cluster.api.access.audit import settle
from shoal.cluster.api.access.failure_bound import FailureBound
from shoal.cluster.api.request.context import context_of
from shoal.model import tasks, verbs
from shoal.model.access import (
    ANY_ENVIRONMENT,
    MAIN_ENVIRONMENT,
    Caller,
    Scope,
    StoredToken,
    TokenInfo,
    caller,
    digest_of,
    matches,
    split,
)
from shoal.model.errors import PermissionDenied, QuotaExceeded, Unauthenticated, Unavailable
from shoal.model.hosts import is_loopback
from shoal.model.http import BEARER_SUBPROTOCOL, SUBPROTOCOL
from shoal.model.visibility import check_may, no_environment
from shoal.transport.contract import Transport

TRUST_S = 600.0
"""Seconds for which a valid token stays valid while the controller does not answer."""

_ANSWER_S = 1.0
"""Seconds after which the controller counts as not answering."""

_LIST_EVERY_S = 1.0

_MOST_TOKENS = 10_000
_LOOKUPS = 32  # of unknown ids at the same time: guesses must not fill the controller's queue

_DUMMY = StoredToken(TokenInfo("tk-", "", "-", Scope.READ, 0.0), digest_of(""))
"""The secret of an unknown token is compared with this one's, so that it takes as long as for a known token."""


class TokenCache:
    """The cluster's tokens by id. Belongs to one event loop. `ttl`: seconds for which an answer is kept."""

    def __init__(self, transport: Transport, ttl: float) -> None:
        self._transport = transport
        self._ttl = ttl
        # Not a TTL cache: an entry is refreshed before it is too old, and used for longer while the controller is away.
        self._known: MutableMapping[str, tuple[StoredToken, float]] = LRUCache(_MOST_TOKENS)
        # Separate, so that guesses do not evict known tokens.
        self._unknown: MutableMapping[str, bool] = TTLCache(_MOST_TOKENS, ttl)
        self._lookups: dict[str, tuple[asyncio.Task[StoredToken | None], float]] = {}  # since when
        self._guesses = asyncio.Semaphore(_LOOKUPS)
        self._ids: frozenset[str] = frozenset()
        self._listed_at = -_LIST_EVERY_S
        self._next_list: asyncio.Task[None] | None = None
        self.failures = FailureBound()

    async def exists(self, token_id: str) -> bool:
        """Whether there is a token of that id: by the list of all, which is asked for once a second at most, however
        many wait for it. `Unavailable`."""
        if token_id in self._known or token_id in self._ids:
            return True
        if self._next_list is None:
            self._next_list = tasks.shared(self._list(), "list tokens")
        await asyncio.shield(self._next_list)
        return token_id in self._ids

    async def _list(self) -> None:
        await asyncio.sleep(self._listed_at + _LIST_EVERY_S - time.monotonic())
        self._next_list = None  # who comes from now on may know a token that this list lacks
        self._listed_at = time.monotonic()
        self._ids = frozenset(await self._transport.ask(verbs.token_ids))

    async def get(self, token_id: str) -> StoredToken | None:
        """The token of that id, or None; `Unavailable`."""
        now = time.monotonic()
        if known := self._known.get(token_id):
            stored, at = known
            if now - at < self._ttl:
                if now - at > self._ttl / 2:
                    self._lookup(token_id)
                return stored
            if now - at < TRUST_S:
                return await self._again(token_id, stored)
        elif token_id in self._unknown:
            return None
        asking, _ = self._lookup(token_id)
        return await asyncio.shield(asking)

    async def _again(self, token_id: str, stored: StoredToken) -> StoredToken | None:
        """Looks a known token up again, and uses the known one if there is no answer. Only the first caller waits for
        the answer."""
        asking, since = self._lookup(token_id)
        try:
            async with asyncio.timeout(max(0.0, since + _ANSWER_S - time.monotonic())):
                return await asyncio.shield(asking)
        except (Unavailable, TimeoutError):
            return stored

    def forget(self, token_id: str) -> None:
        """The next use looks it up."""
        self._known.pop(token_id, None)

    def _lookup(self, token_id: str) -> tuple[asyncio.Task[StoredToken | None], float]:
        lookup = self._lookups.get(token_id)
        if lookup is None:
            task = asyncio.get_running_loop().create_task(self._ask(token_id))
            lookup = self._lookups[token_id] = task, time.monotonic()
            task.add_done_callback(lambda done: self._asked(token_id, done))
        return lookup

    def _asked(self, token_id: str, done: asyncio.Task[StoredToken | None]) -> None:
        del self._lookups[token_id]
        if not done.cancelled():
            done.exception()  # those who wait get it; if nobody does, the next use asks again

    async def _ask(self, token_id: str) -> StoredToken | None:
        at = time.monotonic()
        if token_id in self._known:
            stored = await self._transport.ask(verbs.stored_token, token_id)
        else:
            async with self._guesses:
                stored = await self._transport.ask(verbs.stored_token, token_id)
        if stored is None:
            self._known.pop(token_id, None)
            self._unknown[token_id] = True
        else:
            self._unknown.pop(token_id, None)
            self._known[token_id] = stored, at
        return stored


async def verify(tokens: TokenCache, text: str, address: str | None) -> TokenInfo:
    """The token that `text` is; `Unauthenticated` if it is not valid, for whatever reason; `QuotaExceeded` if the
    client's address has sent too many such."""
    try:
        return await _verify(tokens, text, address)
    except Unauthenticated as error:
        wait_s = tokens.failures.note(address)
        if wait_s > 0:
            raise QuotaExceeded(
                f"too many requests with wrong tokens come from your address; of the last: {error.message}",
                retry_after=wait_s,
            ) from None
        raise


async def _verify(tokens: TokenCache, text: str, address: str | None) -> TokenInfo:
    parts = split(text)
    if parts is None:
        raise Unauthenticated(
            "this is no API token; they read 'shoal_tk-…_…': make one with `shoal tokens create NAME`"
        )
    refused = Unauthenticated("the token is unknown, expired or revoked; ask for a new one")
    if tokens.failures.wait_s(address) > 0 and not await tokens.exists(parts[0]):
        raise refused
    stored = await tokens.get(parts[0])
    right = matches(stored or _DUMMY, parts[1])
    if stored is None or not right or not stored.info.valid(time.time()):
        raise refused
    return stored.info


async def verify_session(tokens: TokenCache, token_id: str) -> TokenInfo:
    """The token that a session is for; `Unauthenticated` if it is not valid any more."""
    stored = await tokens.get(token_id)
    if stored is None or not stored.info.valid(time.time()):
        raise Unauthenticated("the session's token is revoked or has expired; sign in with another")
    return stored.info


def presented(connection: HTTPConnection) -> str | None:
    """The token text of a request, or None."""
    found: str | None = None
    for name, value in connection.scope["headers"]:
        if name == b"authorization":
            if found is not None:
                raise Unauthenticated("there are two Authorization headers; send one")
            scheme, _, text = value.decode("latin-1").partition(" ")
            if scheme.lower() != "bearer":
                raise Unauthenticated(
                    "the Authorization header is no bearer token; send 'Authorization: Bearer shoal_tk-…'"
                )
            found = text.strip()
    if found is None and connection.scope["type"] == "websocket":
        for protocol in connection.scope.get("subprotocols", ()):
            if protocol.startswith(BEARER_SUBPROTOCOL):
                return str(protocol.removeprefix(BEARER_SUBPROTOCOL))
    return found


def subprotocol(connection: HTTPConnection) -> str | None:
    """The subprotocol to accept a WebSocket with: `shoal.v1` if the client offers it."""
    return SUBPROTOCOL if SUBPROTOCOL in connection.scope.get("subprotocols", ()) else None


class Needs:
    """Admits callers with a token of `scope`: see `needs`."""

    def __init__(self, scope: Scope, everywhere: bool) -> None:
        self.scope = scope
        self.everywhere = everywhere

    async def __call__(self, connection: HTTPConnection) -> Caller:
        context = context_of(connection)
        if not context.authenticated:
            context.caller = await authenticate(connection)
            context.authenticated = True
        who = context.caller
        check_may(who, self.scope, everywhere=self.everywhere)
        caller.set(who)
        context.admitted = True
        settle(connection)
        return who


_NEEDS = {(scope, everywhere): Needs(scope, everywhere) for scope in Scope for everywhere in (False, True)}


def needs(scope: Scope, *, everywhere: bool = False) -> params.Depends:
    """A dependency: the caller, whose token covers `scope` and, if `everywhere`, is one of all environments.

    Sets `shoal.model.access.caller`. `Unauthenticated`, `PermissionDenied`. A route checks it before it reads the body.
    """
    return params.Depends(_NEEDS[scope, everywhere])


Reader = Annotated[Caller, needs(Scope.READ)]
Runner = Annotated[Caller, needs(Scope.RUN)]


async def authenticate(connection: HTTPConnection) -> Caller:
    """The caller by the request's token. If authentication is off, everybody is the cluster's administrator."""
    context = context_of(connection)
    state = connection.app.state
    if not state.settings.api.auth:
        return Caller(request_id=context.request_id, address=context.address)
    text = presented(connection)
    if text is not None:
        info = await verify(state.tokens, text, context.address)
    else:
        token_id = await state.sessions.token_id(connection)
        if token_id is None:
            raise Unauthenticated("there is no token; send 'Authorization: Bearer shoal_tk-…'")
        info = await verify_session(state.tokens, token_id)
    state.usage_reporter.used[info.id] = time.time()
    return Caller(info.id, info.environment, info.scope, context.request_id, context.address)


def environment_for(who: Caller, asked: str | None) -> str:
    """The environment that a request is about: `EnvironmentNotFound` for any other than the token's own."""
    if who.environment == ANY_ENVIRONMENT:
        return asked or MAIN_ENVIRONMENT
    if asked is not None and asked != who.environment:
        raise no_environment(asked)
    return who.environment


def environment_to_list(who: Caller, asked: str | None) -> str | None:
    """The environment that a listing is of; None: all that the token may see. `EnvironmentNotFound`."""
    if asked is None and who.environment == ANY_ENVIRONMENT:
        return None
    return environment_for(who, asked)


# Authentication off


def check_local(headers: list[tuple[bytes, bytes]]) -> None:
    """With authentication off: refuses requests that a foreign web page makes a browser on this machine send.

    The page's host name may resolve to this machine (DNS rebinding), so the Host must be a loopback name. An Origin, if
    there is one, must be the same host and port: pages served out of sandboxes are foreign, too.
    """
    hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
    origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
    host = hosts[0] if len(hosts) == 1 else ""
    if not is_loopback(_hostname(f"//{host}")):
        raise PermissionDenied(
            f"the Host {host[:100]!r} is not this machine; with authentication off, ask for 127.0.0.1 or localhost"
        )
    if any(origin.partition("://")[2] != host for origin in origins):
        raise PermissionDenied("the request comes from a page of another site; with authentication off that is refused")


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
