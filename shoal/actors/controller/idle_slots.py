"""The slots that hold no sandbox and that nobody waits for: which there are, and which have idled too long."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from shoal.actors.controller.slot import Slot
from shoal.model.settings import PoolSettings
from shoal.model.spec import SlotShape


@dataclass(slots=True)
class IdleSlots:
    """Idle slots by shape and node, oldest first. `default_shape`: the one of which a few are kept."""

    settings: PoolSettings
    default_shape: SlotShape
    _by_shape: dict[SlotShape, dict[str, deque[Slot]]] = field(default_factory=dict)
    _count: int = 0

    def __len__(self) -> int:
        return self._count

    def count(self, shape: SlotShape) -> int:
        return sum(len(slots) for slots in self._by_shape.get(shape, {}).values())

    def nodes(self, shape: SlotShape) -> Iterable[str]:
        """The nodes that have idle ones of this shape; "" for what is on none."""
        return self._by_shape.get(shape, ())

    def take(self, shape: SlotShape, node_id: str) -> Slot:
        """One of those on a node of `nodes`: the one used last, whose memory is most likely cached."""
        slot = self._by_shape[shape][node_id].pop()
        self._removed(slot)
        return slot

    def add(self, slot: Slot, now: float) -> None:
        slot.idle_since = now
        self._by_shape.setdefault(slot.shape, {}).setdefault(slot.node_id or "", deque()).append(slot)
        self._count += 1

    def remove(self, slot: Slot) -> None:
        self._by_shape[slot.shape][slot.node_id or ""].remove(slot)
        self._removed(slot)

    def oldest_first(self) -> list[Slot]:
        every = (slot for nodes in self._by_shape.values() for slots in nodes.values() for slot in slots)
        return sorted(every, key=lambda slot: slot.idle_since)

    def expired(self, now: float) -> list[Slot]:
        """Those that idled longer than `pools.linger`, except for the few of the default shape."""
        found: list[Slot] = []
        for shape in self._by_shape:
            keep = self.settings.idle_slots if shape == self.default_shape else 0
            old = [
                slot
                for slots in self._by_shape[shape].values()
                for slot in slots
                if now - slot.idle_since > self.settings.linger
            ]
            old.sort(key=lambda slot: slot.idle_since)
            found += old[: max(0, min(len(old), self.count(shape) - keep))]
        return found

    def missing(self, being_made: int) -> bool:
        """Whether fewer of the default shape are ready, or will be, than are to be kept."""
        return self.count(self.default_shape) + being_made < self.settings.idle_slots

    def _removed(self, slot: Slot) -> None:
        self._count -= 1
        nodes = self._by_shape[slot.shape]
        if not nodes[slot.node_id or ""]:
            del nodes[slot.node_id or ""]
        if not nodes:
            del self._by_shape[slot.shape]
