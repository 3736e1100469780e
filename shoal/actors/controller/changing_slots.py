"""The slots whose sandbox comes or goes: their nodes are at work on that. Pure: the caller passes the time."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.actors.controller.ledger import NodeLedger
from shoal.actors.controller.slot import Slot

LONGEST_S = 5.0
"""Seconds for which one counts. What takes longer, such as an image that is being fetched or a command that has its
time to end, waits for something else than the node's cores."""

SHORT_S = 0.5
"""A sandbox that goes within so many seconds was a short one. For as long after that those that have just come to its
node are taken for such, too: their slots will be free sooner than a new one is there."""


@dataclass(slots=True)
class ChangingSlots:
    """`ledger`: where they are counted by node."""

    ledger: NodeLedger
    _since: dict[str, tuple[float, str | None]] = field(default_factory=dict)
    _young: dict[str, tuple[float, str | None]] = field(default_factory=dict)  # since when they run, longest first
    _short: dict[str, float] = field(default_factory=dict)  # by node, when the last short one went, longest ago first

    def begin(self, slot: Slot, now: float) -> None:
        """Its sandbox begins to come or to go."""
        self.expire(now)
        if slot.id in self._young and slot.node_id is not None:
            self._short.pop(slot.node_id, None)
            self._short[slot.node_id] = now
            self.ledger.note_short(slot.node_id, lately=True)
        self.finish(slot)
        self._since[slot.id] = (now, slot.node_id)
        self.ledger.count_changing(slot.node_id, 1)

    def came(self, slot: Slot, now: float) -> None:
        """Its sandbox runs. Idempotent."""
        if slot.id in self._since:
            self.finish(slot)
            self._young[slot.id] = (now, slot.node_id)
            self.ledger.count_young(slot.node_id, 1)

    def finish(self, slot: Slot) -> None:
        """It is gone. Idempotent."""
        self._drop(slot.id)
        self._drop_young(slot.id)

    def expire(self, now: float) -> None:
        """Those that take too long count no more, nor do those that have run for long."""
        while self._since:
            slot_id, (since, _) = next(iter(self._since.items()))
            if now - since < LONGEST_S:
                break
            self._drop(slot_id)
        while self._young:
            slot_id, (since, _) = next(iter(self._young.items()))
            if now - since < SHORT_S:
                break
            self._drop_young(slot_id)
        while self._short:
            node_id, since = next(iter(self._short.items()))
            if now - since < SHORT_S:
                break
            del self._short[node_id]
            self.ledger.note_short(node_id, lately=False)

    def _drop(self, slot_id: str) -> None:
        found = self._since.pop(slot_id, None)
        if found is not None:
            self.ledger.count_changing(found[1], -1)

    def _drop_young(self, slot_id: str) -> None:
        found = self._young.pop(slot_id, None)
        if found is not None:
            self.ledger.count_young(found[1], -1)
