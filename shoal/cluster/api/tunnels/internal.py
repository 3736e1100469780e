"""What the gateway asks a replica about tunnels: whether one is open, to whom, and where it leads.

An application of its own, on a socket that only the gateway reaches. The gateway checks connect tokens itself, keeps
answers for a moment, and tells what stands in `refusal` only to those who were admitted: to everybody else a sandbox
that is not there, one without tunnels and one whose tunnels are private look the same.
"""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shoal.cluster.api.access.auth import TokenCache, verify
from shoal.cluster.api.access.usage_reporter import UsageReporter
from shoal.cluster.api.request.problems import answer
from shoal.model import verbs
from shoal.model.access import INSIDE, Caller, Scope, Tunnel, caller
from shoal.model.errors import (
    FailedPrecondition,
    InvalidRequest,
    PermissionDenied,
    QuotaExceeded,
    SandboxEnded,
    SandboxNotFound,
    ShoalError,
    TunnelNotFound,
    Unauthenticated,
)
from shoal.model.grants import Grant
from shoal.model.http import problem
from shoal.model.states import State
from shoal.model.tunnels import CONNECT_KEY
from shoal.transport.contract import Transport

_WAKE_S = 50.0
"""Seconds for a start. The gateway waits a little longer."""

_MOST_ASKED = 64
"""Questions at once: those who guess ids must not fill the controller."""


class Question(BaseModel):
    """About a port of a sandbox, and where there is one an API token that wants to pass. `wake`: a request that was
    admitted waits, and starts the sandbox where it is stopped."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    sandbox: str
    port: int = Field(ge=1, le=65535)
    api_token: str | None = None
    wake: bool = False


class TunnelAuthorizer:
    """Answers questions about tunnels."""

    def __init__(self, transport: Transport, tokens: TokenCache, reporter: UsageReporter) -> None:
        self._transport = transport
        self._tokens = tokens
        self._reporter = reporter
        self._asked = 0
        self._waking = 0

    async def secret(self, request: Request) -> Response:
        """What connect tokens are signed with."""
        caller.set(INSIDE)
        try:
            return JSONResponse({"secret": (await self._transport.ask(verbs.tunnel_secret)).hex()})
        except ShoalError as error:
            return answer(error, None)

    async def tunnel(self, request: Request) -> Response:
        """The answer to a `Question`."""
        caller.set(INSIDE)
        try:
            return JSONResponse(await self._bounded(await _question(request)))
        except ShoalError as error:
            return answer(error, None)

    async def _bounded(self, question: Question) -> dict[str, Any]:
        if question.wake:
            return await self._woken(question)
        if self._asked >= _MOST_ASKED:
            raise QuotaExceeded("too many new tunnels are being looked up at once; try again", retry_after=1.0)
        self._asked += 1
        try:
            return await self._answer(question)
        finally:
            self._asked -= 1

    async def _woken(self, question: Question) -> dict[str, Any]:
        if self._waking >= _MOST_ASKED:
            raise QuotaExceeded("too many sandboxes are being started at once; try again", retry_after=1.0)
        self._waking += 1
        try:
            found = await self._tunnels(question.sandbox)
            if not isinstance(found, ShoalError) and _of_port(found, question.port) is not None:
                await self._transport.ask(verbs.wake, question.sandbox, _WAKE_S)
        finally:
            self._waking -= 1
        return await self._answer(question)

    async def _answer(self, question: Question) -> dict[str, Any]:
        found = await self._tunnels(question.sandbox)
        tunnel = None if isinstance(found, ShoalError) else _of_port(found, question.port)
        refusal, admitted = None, None
        if question.api_token is not None:
            refusal = await self._refusal(question.sandbox, question.api_token)
            admitted = refusal is None
        grant: Grant | None = None
        asleep = False
        if tunnel is not None:
            try:
                grant = await self._transport.ask(verbs.grant, question.sandbox)
            except (SandboxEnded, SandboxNotFound, FailedPrecondition) as error:
                asleep = isinstance(error, FailedPrecondition) and _may_wake(error)
                if not asleep:
                    found, tunnel = error, None  # it ended between the two questions, or is to stay stopped
        if tunnel is None and refusal is None:
            refusal = found if isinstance(found, ShoalError) else await self._nothing_there(question)
        return {
            "open": tunnel is not None,
            "public": tunnel is not None and tunnel.public,
            "admitted": admitted,
            "refusal": None if refusal is None else problem(refusal),
            "asleep": asleep,
            "relay": None if grant is None else grant.address,
            "grant": None if grant is None else grant.token,
            "grant_expires": None if grant is None else grant.expires,
            "key": CONNECT_KEY,
        }

    async def _tunnels(self, sandbox_id: str) -> list[Tunnel] | ShoalError:
        """What the context's caller sees, or the error that says why there is nothing to see."""
        try:
            return list(await self._transport.ask(verbs.tunnels, sandbox_id))
        except (SandboxNotFound, SandboxEnded) as error:
            return error

    async def _refusal(self, sandbox_id: str, token: str) -> ShoalError | None:
        """Why an API token opens no tunnel of the sandbox; None where it does."""
        try:
            info = await verify(self._tokens, token, None)  # the gateway asks for all clients
        except (Unauthenticated, QuotaExceeded) as error:
            return error
        self._reporter.used[info.id] = time.time()
        if not info.scope.covers(Scope.RUN):
            return PermissionDenied("tunnels need a token with the scope `run`; this one may only read")
        caller.set(Caller(info.id, info.environment, info.scope))
        try:
            found = await self._tunnels(sandbox_id)
        finally:
            caller.set(INSIDE)
        if isinstance(found, SandboxNotFound):
            return Unauthenticated("this token opens no such tunnel: it is for another environment, or there is none")
        return None

    async def _nothing_there(self, question: Question) -> ShoalError:
        sandbox_id, port = question.sandbox, question.port
        try:
            info = await self._transport.ask(verbs.get, sandbox_id)
        except SandboxNotFound as error:
            return error
        if info.ended:
            message = f"sandbox {sandbox_id} has ended: {info.reason}"
            return SandboxEnded(message, reason=info.reason, exit_code=info.returncode)
        return TunnelNotFound(
            f"sandbox {sandbox_id} has no http tunnel to port {port}; open one with `sandbox.expose({port})` or "
            f"`shoal tunnel {sandbox_id} {port}`"
        )


def make_internal_app(app: FastAPI) -> Starlette:
    """The internal application beside a replica's public one, which shares that one's state."""
    state = app.state
    authorizer = TunnelAuthorizer(state.transport, state.tokens, state.usage_reporter)
    return Starlette(
        routes=[
            Route("/tunnel", authorizer.tunnel, methods=["POST"]),
            Route("/tunnel-secret", authorizer.secret, methods=["GET"]),
        ]
    )


def _may_wake(error: FailedPrecondition) -> bool:
    """Whether a sandbox that gave this error can be reached once it is started."""
    waits = error.state in (State.STOPPED, State.PAUSED) and bool(error.fields.get("autostart"))
    return error.state == State.STARTING or waits


async def _question(request: Request) -> Question:
    try:
        return Question.model_validate_json(await request.body())
    except ValidationError as error:
        raise InvalidRequest(f"the gateway asks what this replica does not understand: {error}", field="body") from None


def _of_port(tunnels: list[Tunnel], port: int) -> Tunnel | None:
    return next((tunnel for tunnel in tunnels if tunnel.port == port and tunnel.protocol == "http"), None)
