"""Which slots there are, which of them hold a sandbox, and what each environment's sandboxes hold together. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.actors.controller.room import Amount
from shoal.actors.controller.slot import Slot


@dataclass(slots=True)
class SlotHolders:
    """`used`: by environment."""

    used: dict[str, Amount] = field(default_factory=dict)
    _known: dict[str, Slot] = field(default_factory=dict)
    _holding: dict[str, str] = field(default_factory=dict)  # slot to environment
    _counts: dict[str, int] = field(default_factory=dict)

    def know(self, slot: Slot) -> None:
        self._known[slot.id] = slot

    def knows(self, slot: Slot) -> bool:
        return slot.id in self._known

    def forget(self, slot: Slot) -> bool:
        """Whether it was known."""
        return self._known.pop(slot.id, None) is not None

    def hold(self, slot: Slot, environment: str) -> bool:
        """Whether it held no sandbox before."""
        self._known[slot.id] = slot
        if slot.id in self._holding:
            return False
        self._holding[slot.id] = environment
        self._counts[environment] = self._counts.get(environment, 0) + 1
        self.used[environment] = self.used.get(environment, Amount()).plus(slot.shape)
        return True

    def release(self, slot: Slot) -> bool:
        """Whether it held a sandbox."""
        environment = self._holding.pop(slot.id, None)
        if environment is None:
            return False
        self._counts[environment] -= 1
        if self._counts[environment]:
            self.used[environment] = self.used[environment].minus(slot.shape)
        else:  # exactly nothing, whatever fractions have summed up to
            del self._counts[environment], self.used[environment]
        return True

    def held(self) -> list[Slot]:
        """Those that hold a sandbox."""
        return [self._known[slot_id] for slot_id in self._holding]
