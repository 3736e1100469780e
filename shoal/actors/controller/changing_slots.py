"""The slots whose sandbox comes or goes: their nodes are at work on that. Pure: the caller passes the time."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.actors.controller.ledger import NodeLedger
from shoal.actors.controller.slot import Slot

LONGEST_S = 5.0
"""Seconds for which one counts. What takes longer, such as an image that is being fetched or a command that has its
time to end, waits for something else than the node's cores."""


@dataclass(slots=True)
class ChangingSlots:
    """`ledger`: where they are counted by node."""

    ledger: NodeLedger
    _since: dict[str, tuple[float, str | None]] = field(default_factory=dict)

    def begin(self, slot: Slot, now: float) -> None:
        """Its sandbox begins to come or to go."""
        self.finish(slot)
        self._since[slot.id] = (now, slot.node_id)
        self.ledger.count_changing(slot.node_id, 1)

    def finish(self, slot: Slot) -> None:
        """It runs, or is gone. Idempotent."""
        self._drop(slot.id)

    def expire(self, now: float) -> None:
        """Those that take too long count no more."""
        while self._since:
            slot_id, (since, _) = next(iter(self._since.items()))
            if now - since < LONGEST_S:
                return
            self._drop(slot_id)

    def _drop(self, slot_id: str) -> None:
        found = self._since.pop(slot_id, None)
        if found is not None:
            self.ledger.count_changing(found[1], -1)
