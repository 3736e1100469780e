"""Health checks: whether this replica lives, and whether it can work. They need no token and say nothing about the
cluster."""

from __future__ import annotations

import asyncio
import time
from importlib.metadata import version

from starlette.requests import Request

from shoal.cluster.api.request.answers import Json
from shoal.cluster.api.request.route import new_router
from shoal.cluster.api.schema.administration import Health
from shoal.model import verbs
from shoal.model.errors import ShoalError, Unavailable
from shoal.transport.contract import Transport

READY_S = 2.0
"""Seconds in which the controller must answer."""

_FRESH_S = 1.0
"""Seconds for which the controller's answer is kept, so that nobody without a token can make this replica ask more
often."""

_VERSION = version("shoal")

router = new_router("health")


@router.get("/v1/health", response_model=Health, summary="Whether this replica answers")
async def get_health() -> Json:
    """It does if it answers this."""
    return Json({"status": "ok", "version": _VERSION})


@router.get("/v1/ready", response_model=Health, summary="Whether the cluster answers")
async def get_ready(request: Request) -> Json:
    """200 if the cluster's controller answers within 2 s, else 503."""
    await _probe(request).check()
    return Json({"status": "ok", "version": _VERSION})


def _probe(request: Request) -> _Probe:
    state = request.app.state
    if not hasattr(state, "probe"):
        state.probe = _Probe(state.transport)
    probe: _Probe = state.probe
    return probe


class _Probe:
    """Asks the controller, once at a time."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._lock = asyncio.Lock()
        self._asked_at = float("-inf")
        self._error: Unavailable | None = None

    async def check(self) -> None:
        """Raises `Unavailable` if the controller does not answer."""
        async with self._lock:
            if time.monotonic() - self._asked_at >= _FRESH_S:
                self._error = await self._ask()
                self._asked_at = time.monotonic()
        if self._error is not None:
            raise Unavailable(self._error.message)

    async def _ask(self) -> Unavailable | None:
        try:
            async with asyncio.timeout(READY_S):
                await self._transport.ask(verbs.last_event)
        except TimeoutError:
            return Unavailable(f"the controller did not answer within {READY_S:g} s; wait for it")
        except ShoalError as error:
            return Unavailable(f"the controller does not answer: {error}")
        return None
