"""A thin wrapper around calls to actors: Ray's errors become Shoal's."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from shoal.model import call_context, tracing
from shoal.model.errors import DeadlineExceeded, Unavailable
from shoal.model.ids import NAMESPACE
from shoal.model.ray_errors import translate

WAITS = frozenset({"ended", "hold", "unready", "watch_container", "wipe"})
"""Methods that belong to no call, whoever asks: they wait for what comes, or tidy up after it."""


class Carrying:
    """An actor that is told what a call belongs to: the request, the trace, the sandbox. `call` tells it."""

    async def carry(self, carrier: Mapping[str, str], method: str, arguments: tuple[Any, ...]) -> Any:
        """Calls a method of this actor as part of what `carrier` says."""
        call_context.enter(carrier)
        with tracing.span(method, root=False) as span:
            tracing.note(span, sandbox_id=carrier.get("sandbox_id", ""), outcome="ok")
            return await getattr(self, method)(*arguments)


def is_gone(error: Unavailable) -> bool:
    """Whether the actor has died for good, rather than being restarted."""
    return error.fields.get("actor") == "gone"


def is_restarting(error: Unavailable) -> bool:
    """Whether Ray is restarting the actor."""
    return error.fields.get("actor") == "restarting"


async def call(handle: ActorHandle[Any], method: str, *args: Any, timeout_s: float | None = None) -> Any:
    """Calls `method` on an actor and returns its result; where it is `Carrying`, it is told what the call belongs to.

    Raises the `ShoalError` that the method raised; `Unavailable` if the actor died for good (`is_gone`) or is being
    restarted; `DeadlineExceeded` after `timeout_s` seconds; `Internal` for any other failure in the actor.
    """
    try:
        carrier = None if method in WAITS else call_context.carried()
        if carrier is None or not hasattr(handle, "carry"):
            reference = getattr(handle, method).remote(*args)
        else:
            reference = handle.carry.remote(carrier, method, args)
        # Not `wait_for`: Python 3.11's returns an answer that has just come to a caller that was cancelled.
        async with asyncio.timeout(timeout_s):
            return await reference
    except RayError as error:  # first: an actor's own `TimeoutError` is one as well, and no word about `timeout_s`
        raise translate(error, method) from None
    except TimeoutError:
        raise DeadlineExceeded(f"{method} took longer than {timeout_s} s") from None


def find_actor(name: str) -> ActorHandle[Any] | None:
    """The living actor of that name in Shoal's namespace. Asks the GCS: blocks for about a millisecond."""
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None
