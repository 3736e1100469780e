"""What a slot asks of its node and of an agent, with patience for an actor or a relay that is being restarted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from shoal.actors.handles import call, is_restarting
from shoal.actors.messages import ContainerLoss, ContainerStarted
from shoal.model.errors import ShoalError, Unavailable
from shoal.wire.agent import Agent
from shoal.wire.connection import Connection

AGENT_WAIT_S = 30.0
"""Seconds that the agent of a new container has to answer."""

RETRY_S = 0.2
LONGEST_RETRY_S = 5.0
_NODE_ATTEMPTS = 200  # forty seconds: Ray restarts an actor in one or two


async def call_node(node: Any, method: str, *args: Any) -> Any:
    """Calls the node, and retries while its actor is being restarted: its methods are idempotent."""
    for attempt in range(_NODE_ATTEMPTS):
        try:
            return await call(node, method, *args)
        except Unavailable as error:
            if not is_restarting(error) or attempt == _NODE_ATTEMPTS - 1:
                raise
            await asyncio.sleep(RETRY_S)
    raise AssertionError("unreachable")


async def connect(started: ContainerStarted, wait_s: float) -> Agent:
    """A connection to the agent of a container, for which it waits up to `wait_s` seconds."""
    return Agent(await Connection.open(started.relay, started.token, wait_s=wait_s, timeout_s=5.0))


async def loss_of(node: Any, key: str) -> ContainerLoss:
    """Waits until a container is lost, and returns how."""
    retries = pauses()
    while True:
        try:
            loss: ContainerLoss | None = await call(node, "watch_container", key)
        except ShoalError:
            # The node actor is being restarted, or failing. It finds out by itself what happened meanwhile.
            await asyncio.sleep(next(retries))
            continue
        if loss is not None:
            return loss
        retries = pauses()


def pauses() -> Iterator[float]:
    """Seconds between tries: short at first, for an actor that is being restarted, then longer."""
    pause = RETRY_S
    while True:
        yield pause
        pause = min(pause * 2, LONGEST_RETRY_S)
