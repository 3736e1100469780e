"""Who may go through a tunnel: public ones everybody, private ones who holds a connect token for them or an API token for their environment.

To whoever holds neither, a sandbox that is not there, one without tunnels and one whose tunnels are private look all the same.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from shoal.cluster.api.access.auth import TokenCache
from shoal.cluster.api.access.auth import verify as verify_api_token
from shoal.cluster.api.access.usage_reporter import UsageReporter
from shoal.cluster.api.request.context import NOBODY
from shoal.cluster.api.tunnels.tunnel_visits import Visit
from shoal.model import verbs
from shoal.model.access import INSIDE, Caller, Scope, Tunnel, caller
from shoal.model.errors import (
    PermissionDenied,
    QuotaExceeded,
    SandboxEnded,
    SandboxNotFound,
    ShoalError,
    TunnelNotFound,
    Unauthenticated,
    Unavailable,
)
from shoal.model.grants import SCOPE_TUNNEL, verify
from shoal.transport.contract import Transport

KNOWN_S = 2.0
"""Seconds for which a replica takes what it heard of a sandbox's tunnels for true."""

DOUBTED_S = 0.2
"""The same where somebody would be turned away for it: the tunnel may have been opened to him a moment ago."""

GUARD_S = 10.0
"""Seconds between two looks whether who is inside would still be let in."""

CONNECT_KEY = "http"
"""What connect tokens of tunnels say in the place of a container's key: they outlive it, and no relay takes them."""

_MOST_KNOWN = 4096
_MOST_ASKING = 64  # lookups at once: strangers who guess ids must not fill the controller


@dataclass(frozen=True, slots=True)
class Admission:
    """A visit that may go on. `token`: the connect token that opened the door, until `expires` (unix seconds); None where none was needed."""

    token: str | None = None
    expires: float | None = None
    caller: Caller = NOBODY


class Door:
    """Lets visits through or not. `secret` gives what connect tokens are signed with; it is asked once."""

    def __init__(
        self, transport: Transport, secret: Callable[[], Awaitable[bytes]], tokens: TokenCache, reporter: UsageReporter
    ) -> None:
        self._ask_secret = secret
        self._secret: bytes | None = None
        self._transport = transport
        self._tokens = tokens
        self._reporter = reporter
        self._known = _Known(transport)

    async def admit(self, visit: Visit) -> Admission:
        """Returns how the visit was let in. Raises `Unauthenticated`, `PermissionDenied`, `TunnelNotFound`, `SandboxEnded`, `Unavailable`."""
        sandbox_id, port = visit.target.sandbox_id, visit.target.port
        found = await self._known.look(sandbox_id, INSIDE)
        tunnel = None if isinstance(found, ShoalError) else _of_port(found, port)
        if (tunnel is None or not tunnel.public) and visit.offered.nothing:
            found = await self._known.look(sandbox_id, INSIDE, at_most_s=DOUBTED_S)
            tunnel = None if isinstance(found, ShoalError) else _of_port(found, port)
        if tunnel is not None and tunnel.public:
            return await self._by_link(visit)
        admission = await self._connect_token(visit)
        if admission is None:
            admission = Admission(caller=await self._api_token(visit))
        if tunnel is None:
            # It may have been opened just now, and who holds a token may have it looked up at once.
            found = await self._known.look(sandbox_id, INSIDE, at_most_s=0)
            if isinstance(found, ShoalError) or _of_port(found, port) is None:
                raise await self._nothing_there(sandbox_id, port, found)
        return admission

    async def guard(self, visit: Visit, admission: Admission) -> None:
        """Ends only by raising, of a visit that goes on: what `admit` would now. The connect token that let it in may expire meanwhile."""
        while True:
            await asyncio.sleep(GUARD_S)
            try:
                await self._still(visit, admission)
            except (QuotaExceeded, Unavailable):
                pass  # nobody knows at the moment: whoever is in stays in

    async def _still(self, visit: Visit, admission: Admission) -> None:
        if admission.token is None:
            await self.admit(visit)
            return
        sandbox_id, port = visit.target.sandbox_id, visit.target.port
        found = await self._known.look(sandbox_id, INSIDE)
        if isinstance(found, ShoalError) or _of_port(found, port) is None:
            raise await self._nothing_there(sandbox_id, port, found)

    async def _by_link(self, visit: Visit) -> Admission:
        """The admission to a public tunnel, which may have been private: a link with a token in it is tidied up all the same."""
        if visit.offered.query is not None:
            try:
                return await self._connect_token(visit) or Admission()
            except Unauthenticated:
                pass
        return Admission()

    async def _connect_token(self, visit: Visit) -> Admission | None:
        """The admission by a connect token; None where the request has no good one and an API token may be tried. Raises of the last bad one."""
        offered = visit.offered
        tokens = [token for token in (offered.header, offered.query) if token is not None]
        if offered.own_page:
            tokens += offered.cookies
        refusal: Unauthenticated | None = None
        for token in tokens:
            try:
                claims = verify(await self._signing(), token, time.time())
            except Unauthenticated as error:
                refusal = error
                continue
            good_for = (claims.sandbox_id, claims.port, claims.key, SCOPE_TUNNEL in claims.scopes)
            if good_for == (visit.target.sandbox_id, visit.target.port, CONNECT_KEY, True):
                return Admission(token, claims.expires)
            refusal = Unauthenticated("the connect token is for another tunnel: ask for one of this tunnel's own")
        if refusal is not None and offered.api_token is None:
            raise refusal
        return None

    async def _api_token(self, visit: Visit) -> Caller:
        token = visit.offered.api_token
        if token is None:
            raise Unauthenticated(
                "this tunnel is private, or there is none: open it with a connect token (`sandbox.connect_token`, "
                "`shoal tunnel`), in the header X-Shoal-Connect-Token or as ?shoal_token=…"
            )
        info = await verify_api_token(self._tokens, token)
        self._reporter.used[info.id] = time.time()
        who = Caller(info.id, info.environment, info.scope)
        if not who.scope.covers(Scope.RUN):
            raise PermissionDenied("tunnels need a token with the scope `run`; this one may only read")
        if isinstance(await self._known.look(visit.target.sandbox_id, who), SandboxNotFound):
            raise Unauthenticated("this token opens no such tunnel: it is for another environment, or there is none")
        return who

    async def _signing(self) -> bytes:
        if self._secret is None:
            self._secret = await self._ask_secret()
        return self._secret

    async def _nothing_there(self, sandbox_id: str, port: int, found: Sequence[Tunnel] | ShoalError) -> ShoalError:
        """What to say to somebody who may know."""
        if isinstance(found, SandboxEnded):
            return found
        if not isinstance(found, ShoalError):
            info = await self._transport.ask(verbs.get, sandbox_id)
            if info.ended:
                return SandboxEnded(
                    f"sandbox {sandbox_id} has ended: {info.reason}", reason=info.reason, exit_code=info.returncode
                )
        return TunnelNotFound(
            f"sandbox {sandbox_id} has no http tunnel to port {port}; open one with `sandbox.expose({port})` or "
            f"`shoal tunnel {sandbox_id} {port}`"
        )


class _Known:
    """What sandboxes' tunnels were a moment ago, as callers of each environment see them. Callers at one time share one question."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._answers: OrderedDict[tuple[str, str], tuple[float, Sequence[Tunnel] | ShoalError]] = OrderedDict()
        self._asking: dict[tuple[str, str], asyncio.Task[Sequence[Tunnel] | ShoalError]] = {}

    async def look(
        self, sandbox_id: str, who: Caller, *, at_most_s: float | None = None
    ) -> Sequence[Tunnel] | ShoalError:
        """The tunnels as they were at most so many seconds ago (None: `KNOWN_S`), or the `SandboxNotFound` or `SandboxEnded` in their place;
        other errors are raised."""
        key = (who.environment, sandbox_id)
        loop = asyncio.get_running_loop()
        answer = self._answers.get(key)
        if answer is not None and loop.time() < answer[0] + (KNOWN_S if at_most_s is None else at_most_s):
            return answer[1]
        asking = self._asking.get(key)
        if asking is None:
            if len(self._asking) >= _MOST_ASKING:
                raise QuotaExceeded("too many new tunnels are being looked up at once; try again", retry_after=1.0)
            context = contextvars.copy_context()
            context.run(caller.set, Caller(environment=who.environment, scope=Scope.READ, token=who.token))
            asking = loop.create_task(self._ask(key), context=context)
            self._asking[key] = asking
            asking.add_done_callback(lambda task: self._settle(key, task))
        # Shielded: one visitor that goes away does not take the answer from the others.
        return await asyncio.shield(asking)

    async def _ask(self, key: tuple[str, str]) -> Sequence[Tunnel] | ShoalError:
        asked_at = asyncio.get_running_loop().time()
        answer: Sequence[Tunnel] | ShoalError
        try:
            answer = tuple(await self._transport.ask(verbs.tunnels, key[1]))
        except (SandboxNotFound, SandboxEnded) as error:
            answer = error
        self._answers[key] = (asked_at, answer)
        self._answers.move_to_end(key)
        while len(self._answers) > _MOST_KNOWN:
            self._answers.popitem(last=False)
        return answer

    def _settle(self, key: tuple[str, str], task: asyncio.Task[Sequence[Tunnel] | ShoalError]) -> None:
        self._asking.pop(key, None)
        if not task.cancelled():
            task.exception()  # seen, also where every visitor has gone


def _of_port(tunnels: Sequence[Tunnel], port: int) -> Tunnel | None:
    return next((tunnel for tunnel in tunnels if tunnel.port == port and tunnel.protocol == "http"), None)
