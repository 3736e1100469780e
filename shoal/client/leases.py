"""Renews the owner leases of the sandboxes that a client has created, so that they end if this program dies.

One task on the background loop serves all of a client's sandboxes, however they are used: a program that blocks its own
event loop loses none of them. It renews each after a third of its lease, up to a thousand in one call.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.client.dual_method import background_loop
from shoal.model import tasks, verbs
from shoal.model.errors import ShoalError
from shoal.model.info import SandboxInfo

if TYPE_CHECKING:
    from shoal.transport.contract import Transport

_log = logging.getLogger("shoal.leases")

BATCH = 1000
"""Leases renewed in one call."""

_RENEWALS = 3
"""Tries within one lease: two of them may fail."""

_AGAIN_S = 1.0
_SHORTEST_CALL_S = 2.0


@dataclass(slots=True)
class _Lease:
    """`every_s`: seconds from one renewal to the next; `due`: when that is, by the loop's clock."""

    every_s: float
    due: float


class OwnerLeases:
    """The leases that one client renews. All but the constructor, `add` and `close` runs on the background loop."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0
        self._held: dict[str, _Lease] = {}
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    def add(self, info: SandboxInfo) -> None:
        """Renews the sandbox's lease from now on, if it has one."""
        lease_s = info.spec.owner_lease
        if lease_s is None or info.ended:
            return
        loop = background_loop()
        with self._lock:
            if self._loop is not loop:  # the first; or this is a forked child, whose parent goes on to renew its own
                self._loop, self._process = loop, os.getpid()
                self._held, self._task, self._changed = {}, None, asyncio.Event()
        loop.call_soon_threadsafe(self._add, info.id, lease_s / _RENEWALS)

    def drop(self, sandbox_id: str) -> None:
        """Does not renew this sandbox's lease any more."""
        self._held.pop(sandbox_id, None)

    async def close(self) -> None:
        """Renews no more: the sandboxes end once their leases are over. From any loop."""
        loop = self._loop
        if loop is None or loop.is_closed() or self._process != os.getpid():
            return
        if loop is asyncio.get_running_loop():
            await self._stop()
        else:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._stop(), loop))

    def _add(self, sandbox_id: str, every_s: float) -> None:
        self._held[sandbox_id] = _Lease(every_s, asyncio.get_running_loop().time() + every_s)
        self._changed.set()
        if self._task is None:
            self._task = tasks.supervise(self._renew, "renew owner leases")

    async def _stop(self) -> None:
        task, self._task = self._task, None
        self._held.clear()
        if task is not None:
            await tasks.stop(task)
            await self._transport.close()  # this loop's connections, which the task may have opened

    async def _renew(self) -> None:
        """Runs while there are leases."""
        loop = asyncio.get_running_loop()
        while self._held:
            self._changed.clear()
            now = loop.time()
            if any(lease.due <= now for lease in self._held.values()):
                # Those that are due soon come along: fewer calls.
                due = [name for name, lease in self._held.items() if lease.due <= now + lease.every_s / 2]
                for start in range(0, len(due), BATCH):
                    await self._renew_batch(due[start : start + BATCH])
                continue
            try:
                async with asyncio.timeout(min(lease.due for lease in self._held.values()) - now):
                    await self._changed.wait()
            except TimeoutError:
                pass  # the next is due
        self._task = None

    async def _renew_batch(self, batch: list[str]) -> None:
        loop = asyncio.get_running_loop()
        asked = loop.time()
        batch = [name for name in batch if name in self._held]
        if not batch:
            return
        shortest_s = min(self._held[name].every_s for name in batch)
        try:
            async with asyncio.timeout(max(shortest_s, _SHORTEST_CALL_S)):
                renewed = set(await self._transport.ask(verbs.renew, batch))
        except (ShoalError, TimeoutError) as error:
            _log.warning("the owner leases of %d sandboxes are not renewed yet: %s", len(batch), error)
            for name in self._held.keys() & set(batch):
                self._held[name].due = loop.time() + _AGAIN_S
            return
        for name in self._held.keys() & set(batch):
            if name in renewed:
                self._held[name].due = asked + self._held[name].every_s
            else:
                del self._held[name]  # it has ended
