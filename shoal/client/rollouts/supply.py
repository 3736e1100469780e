"""The sandboxes of a map: made when an item needs one, reused if that was asked for, and always ended.

They are ended on Shoal's background loop. A program that leaves its loop, or whose loop cancels all tasks as
`asyncio.run` does at its end, could not wait for that itself.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shoal.client.dual_method import background_loop
from shoal.client.rollouts.options import Plan
from shoal.client.sandbox import Sandbox
from shoal.model.errors import (
    FailedPrecondition,
    InvalidRequest,
    NoCapacity,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    ShoalError,
    Unauthenticated,
)
from shoal.model.validate import MAX_TIMEOUT, check_number

if TYPE_CHECKING:
    from shoal.client.cluster import Client

_log = logging.getLogger("shoal.map")

_SETTLE_S = 15.0
"""Seconds that `close` waits for sandboxes to end. What has not ended then goes on, or ends with its owner lease."""

_SPARE_S = 60.0
_ROOM_S = 1.0
_CALLERS_FAULT = (InvalidRequest, Unauthenticated, PermissionDenied, NotFound, FailedPrecondition)
"""Errors of a create that every other create of the same map would have too."""


class WrongSpec(Exception):
    """No item can have a sandbox; the cause says why."""


@dataclass(slots=True, eq=False)
class Lent:
    """A sandbox for one item.

    `timeout_s`: the item's. `since`: when it became ready, by the loop's clock. `items`: how many it has served.
    """

    sandbox: Sandbox
    timeout_s: float
    since: float
    items: int = 0
    ended: bool = False


class Supply:
    """All sandboxes of one map."""

    def __init__(self, plan: Plan, client: Client, timeout_s: float) -> None:
        self._plan = plan
        self._client = client
        self._timeout_s = timeout_s
        self._free: list[Lent] = []
        self._count = 0
        self._freed = asyncio.Event()
        self._endings: set[concurrent.futures.Future[None]] = set()
        self._exhausted = asyncio.Event()

    async def take(self, item: Any) -> Lent:
        """A sandbox for an item: a free one, or a new one. Raises what `Sandbox.create` raises, `WrongSpec`."""
        if self._free:
            return self._free.pop()
        options, timeout_s = self._options_for(item)
        self._count += 1
        try:
            sandbox = await self._create(options)
        except BaseException:
            self._gone()
            raise
        return Lent(sandbox, timeout_s, asyncio.get_running_loop().time())

    async def give_back(self, lent: Lent) -> None:
        """After an item that succeeded: resets the sandbox for another, or ends it."""
        lent.items += 1
        if self._exhausted.is_set() or lent.items >= self._plan.reuse:
            await self.end(lent)
            return
        try:
            await lent.sandbox.reset.aio(*self._plan.reset)
        except ShoalError as error:
            _log.info("sandbox %s is not reused: %s", lent.sandbox.id, error)
            await self.end(lent)
            return
        except BaseException:
            await self.end(lent)
            raise
        lent.since = asyncio.get_running_loop().time()
        self._free.append(lent)
        if self._exhausted.is_set():
            await self.exhausted()  # meanwhile the last item was taken

    async def end(self, lent: Lent) -> None:
        """Ends a sandbox. If the caller is cancelled meanwhile, it ends all the same. May be called again."""
        if lent.ended:
            return
        lent.ended = True
        self._client.transport.forget(lent.sandbox.id)
        ending = asyncio.run_coroutine_threadsafe(_end(self._client, lent.sandbox), background_loop())
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)
        try:
            await asyncio.shield(asyncio.wrap_future(ending))
        finally:
            self._gone()

    async def exhausted(self) -> None:
        """There are no further items: ends the free sandboxes, and keeps none from now on. May be called again."""
        self._exhausted.set()
        free, self._free = self._free, []
        await asyncio.gather(*map(self.end, free))

    async def close(self) -> None:
        """Ends all that is left and waits for it."""
        await self.exhausted()
        endings = [asyncio.wrap_future(ending) for ending in self._endings.copy()]
        if endings:
            await asyncio.wait(endings, timeout=_SETTLE_S)

    def _options_for(self, item: Any) -> tuple[dict[str, Any], float]:
        """The options of an item's sandbox, and the seconds that the item may take."""
        options, timeout_s = dict(self._plan.options), self._timeout_s
        if self._plan.spec_of_item is not None:
            options.update(self._plan.spec_of_item(item))
            given = options.pop("timeout", None)
            if given is not None:
                check_number("timeout", given, 0, MAX_TIMEOUT, "seconds")
                timeout_s = given
        # It may wait for its item as long as another item takes, before every item.
        options["timeout"] = min(2 * self._plan.reuse * timeout_s + _SPARE_S, MAX_TIMEOUT)
        return options, timeout_s

    async def _create(self, options: Mapping[str, Any]) -> Sandbox:
        while True:
            try:
                return await Sandbox.create.aio(**options, deadline=self._plan.deadline_s, client=self._client)
            except (QuotaExceeded, NoCapacity) as error:
                if self._count <= 1:
                    raise  # none of this map's own will make room
                await self._wait_for_room(error.fields.get("retry_after", _ROOM_S))
            except _CALLERS_FAULT as error:
                if self._plan.spec_of_item is not None:
                    raise
                raise WrongSpec from error

    async def _wait_for_room(self, most_s: float) -> None:
        self._freed.clear()
        try:
            async with asyncio.timeout(most_s):
                await self._freed.wait()
        except TimeoutError:
            pass  # somebody else may have made room

    def _gone(self) -> None:
        self._count -= 1
        self._freed.set()


async def _end(client: Client, sandbox: Sandbox) -> None:
    try:
        await client.transport.terminate(sandbox.id)
    except ShoalError as error:
        _log.warning("sandbox %s ends only with its owner lease or its timeout: %s", sandbox.id, error)
    finally:
        client.leases.drop(sandbox.id)
