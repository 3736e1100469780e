"""A sandbox actor, as the controller knows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shoal.model.spec import ContainerShape, SlotShape


@dataclass(slots=True)
class Slot:
    """`handle`: the maker's handle of it; `node_id`: None until Ray has placed it; `idle_since`: monotonic seconds, 0.0
    if it has never been idle; `asked`: the node that it was asked for on, None for any; `prepared`: the container that
    it holds ready for a sandbox, and `pool`: for whom."""

    id: str
    shape: SlotShape
    handle: Any
    node_id: str | None = None
    idle_since: float = 0.0
    asked: str | None = None
    prepared: ContainerShape | None = None
    pool: str = ""
