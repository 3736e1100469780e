"""Calls to the controller: on whose behalf, and again while it is being restarted."""

from __future__ import annotations

import asyncio
import time
from typing import Any, ParamSpec, TypeVar, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayError

from shoal.model import call_context
from shoal.model.access import INSIDE, caller
from shoal.model.errors import ShoalError, Unavailable
from shoal.model.ids import CONTROLLER, NAMESPACE
from shoal.model.ray_errors import cause_of, translate
from shoal.model.verbs import Retry, Verb

P = ParamSpec("P")
R = TypeVar("R")

RESTART_S = 20.0
"""How long a call waits for a controller that is being restarted."""


class Controller:
    """The cluster's controller, as this process reaches it."""

    def __init__(self, handle: ActorHandle[Any]) -> None:
        self._handle = handle

    async def ask(self, verb: Verb[P, R], /, *args: P.args, **options: P.kwargs) -> R:
        """The verb's result, or the error that it raised. On behalf of the context's caller, where the verb has a
        scope. While the controller is away the call is made again, for `RESTART_S` and as far as the verb may be."""
        arguments = verb.in_order(args, options)
        on_behalf_of = INSIDE if verb.scope is None else caller.get()
        carrier = call_context.carried()
        belongs = () if carrier is None else (carrier,)
        end = time.monotonic() + RESTART_S
        delay = 0.05  # not tenacity: it adds 50 µs to each call, and cannot look up a new handle
        while True:
            try:
                return cast(R, await self._handle.call.remote(verb.name, arguments, on_behalf_of, *belongs))
            except RayError as error:
                cause = cause_of(error)
                failed = lost(error, verb) if not isinstance(cause, ShoalError) else cause
                final = isinstance(cause, ShoalError) and verb.retry is not Retry.ALWAYS
                if final or not failed.retryable or time.monotonic() + delay > end:
                    raise failed from None
            await asyncio.sleep(delay)
            delay = min(2 * delay, 1.0)
            if isinstance(cause, ActorDiedError):
                # Gone for good, unless somebody has deployed another one.
                self._handle = await asyncio.to_thread(_find, self._handle)


def lost(error: RayError, verb: Verb[..., Any]) -> ShoalError:
    """The error for a call whose answer was lost: of a verb that does something it may have done it (`sent`)."""
    failed = translate(error, f"the controller ({verb.name})")
    if isinstance(failed, Unavailable) and verb.audit is not None:
        failed.fields["sent"] = True
        failed.retryable = verb.retry is not Retry.NEVER
    return failed


def _find(old: ActorHandle[Any]) -> ActorHandle[Any]:
    try:
        return ray.get_actor(CONTROLLER, namespace=NAMESPACE)
    except ValueError:
        return old
