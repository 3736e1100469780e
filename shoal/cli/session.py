"""A command's session with the cluster: one event loop, cancelled by signals, with connections closed at the end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from shoal.cli.exits import NOBODY_READS
from shoal.model.errors import InvalidRequest, ShoalError
from shoal.model.ids import SANDBOX

if TYPE_CHECKING:
    from shoal.client.cluster import Client
    from shoal.client.sandbox import Sandbox

R = TypeVar("R")

SILENT_RAY = {"RAY_DEDUP_LOGS": "1", "RAY_DEDUP_LOGS_SKIP_REGEX": "."}
"""What Ray tells a driver, such as the death of a machine, it prints to standard output, at any time up to the
process's end: into the JSON that a script reads. It drops what matches this, if that is set before Ray is imported."""


@dataclass(frozen=True, slots=True)
class Target:
    """The cluster given by the command's own options; None: as `shoal.connect` finds it."""

    url: str | None = None
    token: str | None = None
    ca: str | None = None


target: ContextVar[Target] = ContextVar("target", default=Target())  # noqa: B039  # frozen


def api_named() -> str | None:
    """The URL of the API in the command's options or the environment."""
    return target.get().url or os.environ.get("SHOAL_URL") or None


def check_here(command: str) -> None:
    """`InvalidRequest` if options name a cluster: `command` is about the one on this machine."""
    meant = target.get()
    for name in ("url", "token", "ca"):
        if getattr(meant, name) is not None:
            raise InvalidRequest(
                f"--{name}: `shoal {command}` is about the cluster on this machine; leave it out",
                field=name,
            )


class Ended(Exception):
    """A signal ended the command, or nobody reads its output; `code` is its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def with_cluster(body: Callable[[Client], Awaitable[R]]) -> R:
    """Connects, runs `body` and closes. SIGINT, SIGTERM and SIGHUP cancel `body`, which undoes its work: `Ended`."""
    os.environ.update(SILENT_RAY)
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
    client = await _by_api_of_here(meant) or await connect.aio(meant.url, token=meant.token, ca=meant.ca)
    try:
        return await body(client)
    finally:
        await client.close.aio()


async def _by_api_of_here(meant: Target) -> Client | None:
    """This machine's cluster by its API, if that is the one that is meant and it answers: importing and joining Ray
    takes most of two seconds, which a command that runs once has no use for."""
    if meant != Target() or os.environ.get("SHOAL_URL") or os.environ.get("RAY_ADDRESS"):
        return None
    from shoal.client.cluster import connect, state_dir
    from shoal.model import cluster_file

    cluster = cluster_file.read(state_dir())
    if cluster is None or not cluster.api_url:
        return None
    try:
        return await connect.aio(cluster.api_url)
    except ShoalError:  # it is down, say, or its token was revoked: who may read the cluster's file needs neither
        return None


async def find(client: Client, name: str) -> Sandbox:
    """A sandbox by its id or its name."""
    from shoal.client.sandbox import Sandbox

    if SANDBOX.fullmatch(name):
        return await Sandbox.from_id.aio(name, client=client)
    return await Sandbox.from_name.aio(name, client=client)
