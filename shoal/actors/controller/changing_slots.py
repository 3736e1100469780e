"""The slots whose sandbox comes or goes: their nodes are at work on that. Pure: the caller passes the time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import takewhile

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
    _young: dict[str, tuple[float, str | None]] = field(default_factory=dict)  # since when they run
    _short: dict[str, float] = field(default_factory=dict)  # by node, when its last short one went

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
        for slot_id in _until(now - LONGEST_S, ((slot_id, since) for slot_id, (since, _) in self._since.items())):
            self._drop(slot_id)
        for slot_id in _until(now - SHORT_S, ((slot_id, since) for slot_id, (since, _) in self._young.items())):
            self._drop_young(slot_id)
        for node_id in _until(now - SHORT_S, self._short.items()):
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


def _until(end: float, times: Iterable[tuple[str, float]]) -> list[str]:
    """Those whose time has come by `end`. `times`: the earliest first."""
    return [key for key, _ in takewhile(lambda each: each[1] <= end, times)]
