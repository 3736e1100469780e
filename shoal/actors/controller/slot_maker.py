"""What creates and ends sandbox actors: a contract, with Ray (`rayslots.py`) and fakes behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from shoal.actors.controller.placement import ANYWHERE, Selector
from shoal.actors.controller.room import NodeRoom
from shoal.actors.controller.slot import Slot
from shoal.model.spec import SlotShape


class SlotMaker(Protocol):
    """Creates and ends slots: by Ray, or in memory in tests."""

    def create(self, shape: SlotShape, node_id: str | None = None, selector: Selector = ANYWHERE) -> Slot:
        """Asks for a new one on a node, or (None) on any that `selector` allows, and returns at once."""

    async def placed(self, slot: Slot) -> None:
        """Waits until it runs, and sets `node_id`; `Unavailable` if it died."""

    def kill(self, slot: Slot) -> None:
        """Ends its worker. Idempotent."""

    async def rooms(self) -> Mapping[str, NodeRoom]:
        """What each node has and what of it is free, by the node's id."""

    async def existing(self) -> list[str]:
        """The ids of the slots of an earlier controller, running or pending."""

    async def describe(self, slot_id: str) -> tuple[Slot, str | None] | None:
        """A slot of an earlier controller and the sandbox that it holds. None, and the slot is ended, if it does not
        answer."""
