"""Resumes what an earlier controller left: slots, sandboxes that run, sandboxes half started, sandboxes that were to
end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from shoal.actors.controller.ready_slots import ReadySlots
from shoal.actors.controller.record import SandboxRecord, from_row
from shoal.actors.controller.registry import Registry
from shoal.actors.controller.slot import Slot
from shoal.actors.controller.slot_maker import SlotMaker
from shoal.actors.controller.slots import SlotPool
from shoal.actors.controller.supervisor import SandboxSupervisor
from shoal.model import tasks
from shoal.model.errors import FailedPrecondition

log = logging.getLogger("shoal.recovery")


@dataclass(slots=True)
class Recovery:
    """One start of the controller."""

    registry: Registry
    supervisor: SandboxSupervisor
    pool: SlotPool
    ready: ReadySlots
    maker: SlotMaker
    _looking: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self, rows: Iterable[dict[str, Any]]) -> None:
        """Returns once every sandbox is known again and resumed. Slots that Ray has not placed yet are looked at in the
        background.

        `FailedPrecondition`, and nothing is touched, if a living sandbox is invalid to this version."""
        records, complete = _records(rows)
        self.registry.restore(records)
        self.registry.complete = self.registry.complete and complete
        living = self.registry.live()
        existing = set(await self.maker.existing())
        # Only slots on record are asked before this returns; the others hold no sandbox that is to live on.
        recorded = [record.slot_id for record in living if record.slot_id in existing]
        described = await asyncio.gather(*(self.maker.describe(slot_id) for slot_id in recorded))
        held: dict[str, Slot] = {}
        by_slot = {record.slot_id: record for record in living}
        for found in described:
            if found is not None:
                self._sort(found, by_slot, held)
        if living:
            log.warning("resuming %d sandboxes", len(living))
        for record in living:
            self.supervisor.resume(record, held.get(record.id))
        for slot_id in existing.difference(recorded):
            task = tasks.supervise(partial(self._look, slot_id), "look at slot")
            self._looking.add(task)
            task.add_done_callback(self._looking.discard)

    @property
    def complete(self) -> bool:
        """Whether all slots have been looked at."""
        return not self._looking

    def close(self) -> None:
        for task in self._looking:
            task.cancel()

    def _sort(
        self, found: tuple[Slot, str | None], by_slot: Mapping[str | None, SandboxRecord], held: dict[str, Slot]
    ) -> None:
        """`by_slot`: the living sandboxes, by the slot that is on record with each."""
        slot, sandbox_id = found
        record = by_slot.get(slot.id)
        if record is not None and (sandbox_id == record.id or slot.must_hear_of(record.started)):
            slot.prepared = None
            held[record.id] = slot
        elif sandbox_id is None and slot.prepared is not None:
            self.ready.adopt(slot, slot.pool)
        elif sandbox_id is None:
            self.pool.put(slot)
        else:
            # Its sandbox has ended, or another slot holds it. The node sweeps its container, if any.
            self.pool.stock.discard(slot)

    async def _look(self, slot_id: str) -> None:
        found = await self.maker.describe(slot_id)
        if found is not None:
            self._sort(found, {}, {})


def _records(rows: Iterable[dict[str, Any]]) -> tuple[Sequence[SandboxRecord], bool]:
    """The sandboxes of all valid rows, and whether all rows are valid."""
    records, complete = [], True
    for row in rows:
        try:
            records.append(from_row(row))
        except (KeyError, TypeError, ValueError) as error:
            if row.get("end") is None:
                # Nodes would remove its container as an orphan.
                raise FailedPrecondition(
                    f"the store's row of sandbox {row.get('id')}, which lives, "
                    f"makes no sense to this version: {error!r}; "
                    "run the version that wrote it, or end the sandbox with that"
                ) from None
            log.warning("the store's row of sandbox %s makes no sense: %r", row.get("id"), error)
            complete = False
    return records, complete
