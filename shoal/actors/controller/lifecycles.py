"""Brings sandboxes up, watches them to their end, and recovers those whose slot was lost.

The order is always: write the intent, act, write what came of it. So a controller that is killed anywhere finds in its journal
what it was about to do.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from shoal.actors.controller.journal import Journal
from shoal.actors.controller.nodes import Nodes
from shoal.actors.controller.record import SandboxRecord
from shoal.actors.controller.registry import Registry
from shoal.actors.controller.slots import Slot, SlotMaker, SlotPool
from shoal.actors.handles import call, is_gone
from shoal.actors.messages import Began, End
from shoal.model.errors import (
    DeadlineExceeded,
    ImageNotFound,
    NotFound,
    SandboxEnded,
    SandboxNotFound,
    ShoalError,
    Unavailable,
)
from shoal.model.states import Event, Reason, State

log = logging.getLogger("shoal.lifecycles")

_RETRY_S = 0.2
_ADOPT_ATTEMPTS = 5
_START_ATTEMPTS = 3


@dataclass(slots=True)
class Lifecycles:
    """The running half of the controller: one task per living sandbox."""

    registry: Registry
    journal: Journal
    pool: SlotPool
    maker: SlotMaker
    nodes: Nodes
    call: Callable[..., Awaitable[Any]] = call
    _slots: dict[str, Slot] = field(default_factory=dict)
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _creating: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _removals: set[asyncio.Task[None]] = field(default_factory=set)

    async def create(self, record: SandboxRecord, deadline: float) -> None:
        """Brings an accepted sandbox up by the moment `deadline` (unix seconds). When it raises, it has ended and nothing is left.

        Called again for the same sandbox (the same idempotency key) it joins what is under way.
        """
        task = self._creating.get(record.id)
        if task is None:
            if record.began is not None or record.ended:
                return
            task = self._creating[record.id] = asyncio.create_task(self._create(record, deadline))
            task.add_done_callback(lambda _: self._creating.pop(record.id, None))
        await asyncio.wait([task])
        if record.end is not None and task.cancelled():  # terminated while it waited for room
            raise ended_error(record)
        task.result()

    async def _create(self, record: SandboxRecord, deadline: float) -> None:
        try:
            await self.journal.put(record)
            attempts = 0
            while True:
                slot = await self.pool.take(record.spec.slot_shape, max(0.0, deadline - time.time()))
                try:
                    await self._start(record, slot, deadline)
                    return
                except Unavailable as error:
                    # An idle slot may have died unnoticed, any number of them. What it began is removed by now: another takes over.
                    attempts += slot.idle_since == 0.0
                    if not is_gone(error) or attempts == _START_ATTEMPTS:
                        raise
        except ShoalError as error:
            await self._finish(record, _failed_start(error))
            self.registry.release_key(record)
            raise

    async def _start(self, record: SandboxRecord, slot: Slot, deadline: float) -> None:
        record.slot_id = slot.id
        if record.life.state is State.PENDING:
            record.life.apply(Event.PLACE, time.time())
        self._slots[record.id] = slot
        await self.journal.put(record)
        try:
            began: Began = await self.call(
                slot.handle, "start", record.id, record.spec, timeout_s=max(0.1, deadline - time.time())
            )
        except DeadlineExceeded:
            self._abandon(record, slot)
            raise DeadlineExceeded(
                "the sandbox did not start in time; nothing of it is left. Allow more with deadline="
            ) from None
        except Unavailable as error:
            if is_gone(error):
                self._slots.pop(record.id, None)
                await self._remove_from_nodes(record.id, slot.node_id)
            else:
                self._free(record, slot)
            raise
        except ShoalError:
            self._free(record, slot)
            raise
        record.began = began
        record.life.apply(Event.READY, time.time())
        self._tasks[record.id] = asyncio.create_task(self._watch(record, slot))
        await self.journal.put(record)

    def _abandon(self, record: SandboxRecord, slot: Slot) -> None:
        """A start that took too long: its slot is not trusted any more, and what it made is removed."""
        self._slots.pop(record.id, None)
        self.pool.discard(slot)
        removal = asyncio.create_task(self._remove_from_nodes(record.id, slot.node_id))
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)

    def _free(self, record: SandboxRecord, slot: Slot) -> None:
        """A start that failed cleanly: the slot has undone it and takes the next."""
        self._slots.pop(record.id, None)
        self.pool.put(slot)

    async def terminate(self, record: SandboxRecord, message: str) -> None:
        """Ends a sandbox and waits for its end."""
        creating = self._creating.get(record.id)
        slot = self._slots.get(record.id)
        if record.ended:
            return
        if slot is None and creating is not None:  # still waiting for room
            await self._finish(record, End(Reason.TERMINATED, None, message, time.time()))
            creating.cancel()
            return
        if creating is not None:
            await asyncio.wait([creating])
        while not record.settled.is_set():
            slot = self._slots.get(record.id)
            if slot is None:
                await asyncio.sleep(_RETRY_S)  # it is changing slots: the next one will end it, or it ends by itself
                continue
            try:
                await self.call(slot.handle, "terminate", record.id, message)
                await record.settled.wait()
            except Unavailable:
                await asyncio.sleep(_RETRY_S)  # its slot died: it is being recovered, then ended
            except SandboxNotFound:
                await record.settled.wait()

    async def _watch(self, record: SandboxRecord, slot: Slot) -> None:
        """Waits for the sandbox's end, through any number of slots."""
        while True:
            try:
                end: End = await self.call(slot.handle, "ended", record.id)
                break
            except Unavailable as error:
                if not is_gone(error):
                    await asyncio.sleep(_RETRY_S)
                    continue
                adopted = await self._adopt(record, slot)
                if isinstance(adopted, End):
                    await self._finish(record, adopted)
                    return
                slot = adopted
            except SandboxNotFound:
                end = End(Reason.EVICTED, None, "its actor does not hold it any more", time.time())
                break
        await self._finish(record, end)
        self._slots.pop(record.id, None)
        try:
            await self.call(slot.handle, "wipe", record.id, timeout_s=30)
        except ShoalError:
            self.pool.discard(slot)
        else:
            self.pool.put(slot)

    async def _adopt(self, record: SandboxRecord, lost: Slot) -> Slot | End:
        """The slot of a running sandbox died: a new one on the same machine takes its container over."""
        assert record.began is not None
        log.warning("slot %s of %s died; taking its container over", lost.id, record.id)
        self._slots.pop(record.id, None)
        for _ in range(_ADOPT_ATTEMPTS):
            slot = self.maker.create(record.spec.slot_shape, record.began.node_id)
            try:
                await self.maker.placed(slot)
                record.began = await self.call(slot.handle, "adopt", record.id, record.spec, record.began.started_at)
            except NotFound:
                self.pool.put(slot)
                return End(Reason.EVICTED, None, "its container was gone when its actor came back", time.time())
            except ShoalError as error:
                log.warning("%s: %s", record.id, error)
                self.maker.kill(slot)
                if not self.nodes.alive(record.began.node_id):
                    return End(Reason.NODE_LOST, None, "its machine is gone; create it again", time.time())
                await asyncio.sleep(_RETRY_S)
                continue
            record.slot_id = slot.id
            self._slots[record.id] = slot
            await self.journal.put(record)
            return slot
        await self._remove_from_nodes(record.id, record.began.node_id)
        return End(Reason.EVICTED, None, "no actor could take its container over", time.time())

    async def resume(self, record: SandboxRecord, slot: Slot | None) -> None:
        """After a restart of the controller: goes on with a living sandbox of the journal, whose slot is `slot` if it still lives."""
        if record.began is None:
            # Half made. Its creator comes back with the same key, or its deadline passes.
            if slot is not None:
                self.pool.discard(slot)
            await self._remove_from_nodes(record.id, None)
            await self._finish(
                record, End(Reason.START_FAILED, None, "the controller was restarted while it started", time.time())
            )
            self.registry.release_key(record)
            return
        holder = slot or Slot(record.slot_id or "", record.spec.slot_shape, None)
        if slot is None:
            adopted = await self._adopt(record, holder)
            if isinstance(adopted, End):
                await self._finish(record, adopted)
                return
            holder = adopted
        self._slots[record.id] = holder
        self._tasks[record.id] = asyncio.create_task(self._watch(record, holder))

    async def lose_node(self, node_id: str) -> None:
        """A machine is gone, and its sandboxes with it."""
        for record in self.registry.live():
            if record.began is not None and record.began.node_id == node_id:
                task = self._tasks.pop(record.id, None)
                if task is not None:
                    task.cancel()
                self._slots.pop(record.id, None)
                await self._finish(
                    record, End(Reason.NODE_LOST, None, "its machine is gone; create it again", time.time())
                )

    async def _finish(self, record: SandboxRecord, end: End) -> None:
        if record.ended:
            return
        record.finish(end, time.time())
        self._tasks.pop(record.id, None)
        forgotten = self.registry.settle(record)
        await self.journal.put(record)
        await self.journal.drop(forgotten)

    async def _remove_from_nodes(self, sandbox_id: str, node_id: str | None) -> None:
        """Whatever container the sandbox has anywhere is removed. A node that does not answer sweeps it by itself later."""
        handles = self.nodes.handles() if node_id is None else [self.nodes.handle(node_id)]
        for result in await asyncio.gather(
            *(self.call(handle, "remove_sandbox", sandbox_id, timeout_s=30) for handle in handles),
            return_exceptions=True,
        ):
            if isinstance(result, BaseException):
                log.warning("removing %s: %s; the node's sweep will do it", sandbox_id, result)


def _failed_start(error: ShoalError) -> End:
    reason = Reason.IMAGE_ERROR if isinstance(error, ImageNotFound) else Reason.START_FAILED
    return End(reason, getattr(error, "exit_code", None), error.message, time.time())


def ended_error(record: SandboxRecord) -> SandboxEnded:
    """What a caller gets who wants something of a sandbox that has ended."""
    assert record.end is not None
    end = record.end
    return SandboxEnded(
        f"sandbox {record.id} has ended ({end.reason.value}): {end.message}",
        reason=end.reason.value,
        exit_code=end.returncode,
    )
