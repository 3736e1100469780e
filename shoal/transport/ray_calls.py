"""The thin wrapper around calls to the controller: on whose behalf, again while it is being restarted, and Ray's errors as Shoal's."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import ray
from ray import exceptions as ray_errors
from ray.actor import ActorHandle

from shoal.model.access import caller
from shoal.model.errors import Internal, ShoalError, Unauthenticated, Unavailable

CONTROLLER = "controller"
NAMESPACE = "shoal"

RESTART_S = 20.0
"""How long a call waits for a controller that is being restarted."""

_MAKES = frozenset({"create", "create_many"})
_NOT_AGAIN = _MAKES | {"grant"}
"""What the controller itself refuses of these has been waited for there; of all else it may soon be possible."""


class Controller:
    """The cluster's controller, as this process reaches it. Each of its methods may be sent twice (a create carries its idempotency key)."""

    def __init__(self, handle: ActorHandle[Any]) -> None:
        self._handle = handle

    async def call(self, method: str, *args: Any) -> Any:
        """The method's result, or the error it raised; the context's caller goes along. One that is away is waited for, for `RESTART_S`."""
        end = time.monotonic() + RESTART_S
        delay = 0.05
        on_behalf_of = caller.get()
        while True:
            try:
                return await getattr(self._handle, method).remote(*args, caller=on_behalf_of)
            except ray_errors.RayError as error:
                cause = error_cause(error)
                translated = translate(error, method)
                refused = isinstance(cause, ShoalError) and method in _NOT_AGAIN
                if not translated.retryable or refused or time.monotonic() + delay > end:
                    raise translated from None
            await asyncio.sleep(delay)
            delay = min(2 * delay, 1.0)
            if isinstance(cause, ray_errors.ActorDiedError):
                # Gone for good, unless somebody has deployed another one.
                self._handle = await asyncio.to_thread(_find, self._handle)


def error_cause(error: ray_errors.RayError) -> BaseException:
    """What a method raised, where it was the method; else `error` itself."""
    cause = error.cause if isinstance(error, ray_errors.RayTaskError) else None
    return cause if isinstance(cause, BaseException) else error


def translate(error: ray_errors.RayError, method: str) -> ShoalError:
    """Shoal's error for one of Ray's."""
    cause = error_cause(error)
    if isinstance(cause, ShoalError):
        return cause
    if isinstance(cause, ray_errors.AuthenticationError):
        return Unauthenticated(f"Ray refuses this process's token: {cause}")
    sent = True if method in _MAKES else None  # it may have made something
    if isinstance(cause, ray_errors.RayActorError):
        return Unavailable(
            "the controller does not answer: it is being restarted, or the cluster is down; `shoal status` tells",
            sent=sent,
        )
    if isinstance(cause, ray_errors.RayError):
        return Unavailable(f"{method}: Ray could not carry out the call ({type(cause).__name__}: {cause})", sent=sent)
    return Internal(f"{method} failed in the controller: {cause!r}")


def _find(old: ActorHandle[Any]) -> ActorHandle[Any]:
    try:
        return ray.get_actor(CONTROLLER, namespace=NAMESPACE)
    except ValueError:
        return old
