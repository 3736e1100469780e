"""A command's time with the cluster: one event loop, signals that cancel it, connections closed at the end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from shoal.cli.exits import NOBODY_READS
from shoal.model.errors import InvalidRequest
from shoal.model.ids import SANDBOX

if TYPE_CHECKING:
    from shoal.client.cluster import Client
    from shoal.client.sandbox import Sandbox

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Target:
    """Which cluster is meant, as the command's own options say it; None: as `shoal.connect` finds it."""

    url: str | None = None
    token: str | None = None
    ca: str | None = None


target: ContextVar[Target] = ContextVar("target", default=Target())  # noqa: B039  # it is frozen


def api_named() -> str | None:
    """The URL of an API that the command's options or the environment name."""
    return target.get().url or os.environ.get("SHOAL_URL") or None


def check_here(command: str) -> None:
    """Refuses a cluster that is named: what `command` does it does to the one on this machine."""
    meant = target.get()
    for name in ("url", "token", "ca"):
        if getattr(meant, name) is not None:
            raise InvalidRequest(
                f"--{name}: `shoal {command}` is about the cluster on this machine, whichever is named; leave it out",
                field=name,
            )


class Ended(Exception):
    """The command was asked to end, or nobody reads what it writes; `code` is its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def with_cluster(body: Callable[[Client], Awaitable[R]]) -> R:
    """Connects, runs `body` and closes. SIGINT, SIGTERM and SIGHUP cancel it, so that it undoes what it began; then `Ended` is raised."""
    return asyncio.run(_cancellable(body))


async def _cancellable(body: Callable[[Client], Awaitable[R]]) -> R:
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(_connected(body))
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if received:
            raise Ended(128 + received[0]) from None
        raise
    except BrokenPipeError:
        raise Ended(NOBODY_READS) from None


async def _connected(body: Callable[[Client], Awaitable[R]]) -> R:
    from shoal.client.cluster import connect

    meant = target.get()
    client = await connect.aio(meant.url, token=meant.token, ca=meant.ca)
    try:
        return await body(client)
    finally:
        await client.close.aio()


async def find(client: Client, name: str) -> Sandbox:
    """A sandbox by its id or its name."""
    from shoal.client.sandbox import Sandbox

    if SANDBOX.fullmatch(name):
        return await Sandbox.from_id.aio(name, client=client)
    return await Sandbox.from_name.aio(name, client=client)
