"""`shoal.map`: a function over many items, each in a sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Coroutine, Generator, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from shoal.client.dual_method import block_on, is_background_loop
from shoal.client.rollouts.options import MapOptions, plan_of
from shoal.client.rollouts.outcome import Outcome
from shoal.client.rollouts.run import Run
from shoal.model import tasks

if TYPE_CHECKING:
    from shoal.client.sandbox import Sandbox

T = TypeVar("T")
R = TypeVar("R")

Items = Iterable[T] | AsyncIterable[T]


class _Map:
    """Calls `function(sandbox, item)` for every item, each in a sandbox of its own, and yields an `Outcome` for each.

        for outcome in shoal.map(rollout, prompts, concurrency=64, retries=2, memory=512):
            print(outcome.index, outcome.value if outcome.ok else outcome.error)

        async for outcome in shoal.map.aio(rollout, prompts):
            ...

    `function`: plain, then each call has a thread; or async, then it runs on the loop that iterates: in a `for` loop
    that is Shoal's own background loop, which it must not block. `items`: any iterable, also an endless one or an async
    one; a generator runs in a thread of its own.

    Outcomes come as they are done, or with `ordered` in the order of the items. What the function raises is the
    outcome's `error`, and so is what befell its sandbox. An attempt is repeated in another sandbox, up to `retries`
    times (2), if its error is `retryable`: a node was lost, a part of the cluster did not answer. The function's own
    errors are repeated only if they are among `retry_on` (a class, or a tuple of classes).

    `concurrency`: items at a time (16). `ahead`: sandboxes that are made before they are needed (a quarter of
    `concurrency`, at least 1). `buffer`: outcomes that may wait for you before no further items are begun
    (`concurrency`). No more items than these three together are taken from `items` ahead of you. If the
    environment's quota is full, the map waits for as long as it has other sandboxes.

    `timeout`: seconds for each attempt of an item, after which it fails with `DeadlineExceeded`; default: the cluster's
    lifetime of a sandbox. `deadline`: seconds for a create. `spec`: options of the sandboxes as a dict, or a function
    that returns them for an item; options given by name are common to all. `owner_lease` is 60 s unless given: if this
    program is killed, its sandboxes end within that time.

    `reuse`: items that one sandbox may serve, one after the other, while they succeed (1). Between two of them it is
    reset: all processes are killed, and the directories in `reset` (`/tmp`, `/var/tmp`, `/dev/shm`) are emptied.
    Everything else stays: other files, users, shared memory of System V, tunnels, the disk that is used up. A hostile
    item can leave something for the next one, so reuse sandboxes only for items that may trust each other.

    `name`: what others see it by, in the dashboard and `shoal rollout ls`, where every map that takes longer than a
    second shows how far it is and its rewards (values that are numbers or rewards).

    `progress`: shows a bar on stderr if that is a terminal, or in the notebook that runs this, there with the mean of
    the values that are numbers or rewards.

    The loop may be left at any time: `break`, an error, Ctrl-C, or a cancelled task. Then what is under way is
    cancelled, and all sandboxes are ended. Raises `InvalidRequest` and the like at once if no sandbox can be created as
    asked, and what `items` itself raises.
    """

    __name__ = "map"
    __qualname__ = "map"

    @overload
    def __call__(
        self, function: Callable[[Sandbox, T], Awaitable[R]], items: Items[T], **options: Unpack[MapOptions]
    ) -> Generator[Outcome[T, R], None, None]: ...
    @overload
    def __call__(
        self, function: Callable[[Sandbox, T], R], items: Items[T], **options: Unpack[MapOptions]
    ) -> Generator[Outcome[T, R], None, None]: ...
    def __call__(
        self, function: Callable[[Sandbox, Any], Any], items: Items[Any], **options: Unpack[MapOptions]
    ) -> Generator[Outcome[Any, Any], None, None]:
        return _blocking(Run(function, items, plan_of(**options)))

    @overload
    def aio(
        self, function: Callable[[Sandbox, T], Awaitable[R]], items: Items[T], **options: Unpack[MapOptions]
    ) -> AsyncGenerator[Outcome[T, R], None]: ...
    @overload
    def aio(
        self, function: Callable[[Sandbox, T], R], items: Items[T], **options: Unpack[MapOptions]
    ) -> AsyncGenerator[Outcome[T, R], None]: ...
    def aio(
        self, function: Callable[[Sandbox, Any], Any], items: Items[Any], **options: Unpack[MapOptions]
    ) -> AsyncGenerator[Outcome[Any, Any], None]:
        """The same, for `async for`."""
        return _awaited(Run(function, items, plan_of(**options)))

    def __repr__(self) -> str:
        return "<shoal.map, and its .aio>"


def _blocking(run: Run[T, R]) -> Generator[Outcome[T, R], None, None]:
    try:
        while (outcome := block_on(_named(run.next()))) is not None:
            yield outcome
    finally:
        _finish(run)


async def _awaited(run: Run[T, R]) -> AsyncGenerator[Outcome[T, R], None]:
    try:
        while (outcome := await run.next()) is not None:
            yield outcome
    finally:
        await run.close()


def _finish(run: Run[Any, Any]) -> None:
    """Closes a run of the background loop, from any thread: the garbage collector may call this from any."""
    if run.loop is None or not is_background_loop(run.loop):
        return  # it never began, or the process is ending, or this is a forked child
    if asyncio._get_running_loop() is run.loop:
        tasks.shared(run.close(), "map: close")
    else:
        block_on(_named(run.close()))


def _named(step: Coroutine[Any, Any, R]) -> Coroutine[Any, Any, R]:
    """Has a warning about this step name the call that the user made."""
    step.__qualname__ = "shoal.map"  # type: ignore[attr-defined]
    return step


map = _Map()
