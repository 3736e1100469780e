"""The error tree for calls to Ray actors: Ray's errors as Shoal's."""

from __future__ import annotations

from ray.exceptions import ActorUnavailableError, AuthenticationError, RayActorError, RayError, RayTaskError

from shoal.model.errors import Internal, ShoalError, Unauthenticated, Unavailable


def cause_of(error: RayError) -> BaseException:
    """What an actor's method raised, where the method did; else `error` itself."""
    cause = error.cause if isinstance(error, RayTaskError) else None
    return cause if isinstance(cause, BaseException) else error


def translate(error: RayError, what: str) -> ShoalError:
    """Shoal's error for one that a call to an actor raised; `what` was called.

    The error that the method raised, if it is Shoal's; else `Unavailable`, whose field `actor` says `restarting` or
    `gone` where the actor is away; `Unauthenticated`, `Internal`.
    """
    cause = cause_of(error)
    if isinstance(cause, ShoalError):
        return cause
    if isinstance(cause, AuthenticationError):
        return Unauthenticated(f"Ray refuses this process's token: {cause}")
    if isinstance(cause, ActorUnavailableError):
        return Unavailable(f"{what} does not answer: its actor is being restarted; try again", actor="restarting")
    if isinstance(cause, RayActorError):
        return Unavailable(f"{what} does not answer: its actor has died; `shoal status` tells more", actor="gone")
    if isinstance(cause, RayError):
        return Unavailable(f"{what}: Ray could not carry out the call ({type(cause).__name__}: {cause}); try again")
    return Internal(f"{what} failed: {cause!r}")
