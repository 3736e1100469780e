"""The slots that hold no sandbox and that nobody waits for: which there are, and which have idled too long."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from shoal.actors.controller.slot import Slot
from shoal.model.settings import PoolSettings
from shoal.model.spec import SlotShape


@dataclass(slots=True)
class IdleSlots:
    """Idle slots by shape, oldest first. `default_shape`: the one of which a few are kept."""

    settings: PoolSettings
    default_shape: SlotShape
    _by_shape: dict[SlotShape, deque[Slot]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(len(slots) for slots in self._by_shape.values())

    def count(self, shape: SlotShape) -> int:
        return len(self._by_shape.get(shape, ()))

    def take(self, shape: SlotShape) -> Slot | None:
        """One of `shape`, if there is one: the one used last, whose memory is most likely cached."""
        slots = self._by_shape.get(shape)
        if not slots:
            return None
        slot = slots.pop()
        self._tidy(shape)
        return slot

    def add(self, slot: Slot, now: float) -> None:
        slot.idle_since = now
        self._by_shape.setdefault(slot.shape, deque()).append(slot)

    def remove(self, slot: Slot) -> None:
        self._by_shape[slot.shape].remove(slot)
        self._tidy(slot.shape)

    def oldest_first(self) -> list[Slot]:
        return sorted((slot for slots in self._by_shape.values() for slot in slots), key=lambda slot: slot.idle_since)

    def remove_expired(self, now: float) -> list[Slot]:
        """Those that idled longer than `pools.linger`, except for the few of the default shape; they are idle no
        more."""
        expired: list[Slot] = []
        for shape, slots in list(self._by_shape.items()):
            keep = self.settings.idle_slots if shape == self.default_shape else 0
            while len(slots) > keep and now - slots[0].idle_since > self.settings.linger:
                expired.append(slots.popleft())
            self._tidy(shape)
        return expired

    def missing(self, being_made: int) -> bool:
        """Whether fewer of the default shape are ready, or will be, than are to be kept."""
        return self.count(self.default_shape) + being_made < self.settings.idle_slots

    def _tidy(self, shape: SlotShape) -> None:
        if not self._by_shape.get(shape, True):
            del self._by_shape[shape]
