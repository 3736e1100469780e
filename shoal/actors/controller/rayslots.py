"""Slots as Ray actors."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError

from shoal.actors.controller.nodes import free_resources
from shoal.actors.controller.placement import ANYWHERE, Selector
from shoal.actors.controller.room import Amount, NodeRoom
from shoal.actors.controller.slot import Slot
from shoal.actors.handles import call, find_actor, is_gone
from shoal.actors.messages import SlotFacts
from shoal.actors.names import NODE_ID_LABEL, REGION_LABEL, SLOT_PREFIX, ZONE_LABEL, slot_options
from shoal.model.errors import ShoalError, Unavailable
from shoal.model.ids import NAMESPACE, new_slot_id
from shoal.model.spec import MIB, SlotShape

_PLACE_ATTEMPTS = 50


class RaySlotMaker:
    """Makes sandbox actors. `grace_s`: between SIGTERM and SIGKILL for a sandbox's command; `log_format`: as the
    setting."""

    def __init__(self, grace_s: float, log_format: str = "text") -> None:
        # Not at the top: loaded first in a worker, it makes that worker lean, which the controller must not be.
        from shoal.actors.sandbox.actor import SandboxActor

        self._grace_s = grace_s
        self._log_format = log_format
        self._class: Any = ray.remote(SandboxActor)  # has no type

    def create(self, shape: SlotShape, node_id: str | None = None, selector: Selector = ANYWHERE) -> Slot:
        """Asks Ray for a new slot on a node, or (None) on any that `selector` allows, and returns at once."""
        slot_id = new_slot_id()
        options = slot_options(slot_id, shape, node_id, _labels(selector))
        handle = self._class.options(**options).remote(slot_id, shape, self._grace_s, self._log_format)
        return Slot(slot_id, shape, handle)

    async def placed(self, slot: Slot) -> None:
        """Waits until it runs and the node actor of its machine answers, and sets `node_id`."""
        for attempt in range(_PLACE_ATTEMPTS):
            try:
                facts: SlotFacts = await call(slot.handle, "describe")
            except Unavailable as error:
                if is_gone(error) or attempt == _PLACE_ATTEMPTS - 1:
                    raise
                await asyncio.sleep(0.1)  # the node actor of a new machine is starting
            else:
                slot.node_id = facts.node_id
                return

    def kill(self, slot: Slot) -> None:
        """Ends its worker. Idempotent."""
        with suppress(RayError, ValueError):
            ray.kill(slot.handle, no_restart=True)

    async def rooms(self) -> Mapping[str, NodeRoom]:
        """What each node has and what of it is free, by the node's id."""
        return await asyncio.to_thread(_rooms)

    async def existing(self) -> list[str]:
        """The ids of the slots of an earlier controller, running or pending."""
        names = await asyncio.to_thread(ray.util.list_named_actors, all_namespaces=True)
        return [n["name"] for n in names if n["namespace"] == NAMESPACE and n["name"].startswith(SLOT_PREFIX)]

    async def describe(self, slot_id: str) -> tuple[Slot, str | None] | None:
        """A slot of an earlier controller and the sandbox that it holds. None, and the slot is ended, if it does not
        answer."""
        handle = await asyncio.to_thread(find_actor, slot_id)
        if handle is None:
            return None
        try:
            facts: SlotFacts = await call(handle, "describe", timeout_s=10)
        except ShoalError:
            with suppress(RayError, ValueError):
                ray.kill(handle, no_restart=True)
            return None
        slot = Slot(facts.slot_id, facts.shape, handle, facts.node_id, prepared=facts.prepared, pool=facts.pool)
        slot.untold = facts.key if facts.sandbox_id is None else None
        return slot, facts.sandbox_id


def _rooms() -> dict[str, NodeRoom]:
    free = free_resources()
    return {
        node["NodeID"]: NodeRoom(
            _amount(node["Resources"]),
            _amount(free.get(node["NodeID"], {})),
            node.get("Labels", {}).get(REGION_LABEL),
            node.get("Labels", {}).get(ZONE_LABEL),
        )
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    }


def _labels(selector: Selector) -> dict[str, str]:
    """As Ray writes label selectors."""
    labels: dict[str, str] = {}
    if selector.regions:
        labels[REGION_LABEL] = f"in({','.join(selector.regions)})"
    if selector.zone is not None:
        labels[ZONE_LABEL] = selector.zone
    if selector.nodes is not None:
        labels[NODE_ID_LABEL] = f"in({','.join(selector.nodes) or 'none'})"  # as none: it waits until one may
    elif selector.not_nodes:
        labels[NODE_ID_LABEL] = f"!in({','.join(selector.not_nodes)})"
    return labels


def _amount(resources: Mapping[str, float]) -> Amount:
    return Amount(resources.get("CPU", 0.0), resources.get("memory", 0.0) / MIB, resources.get("GPU", 0.0))
