"""A sandbox actor, as the controller knows it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from shoal.actors.messages import ContainerStarted, SandboxStarted
from shoal.model.spec import ContainerShape, SandboxSpec, SlotShape


@dataclass(slots=True)
class Slot:
    """`handle`: the maker's handle of it; `node_id`: None until Ray has placed it; `idle_since`: monotonic seconds, 0.0
    if it has never been idle; `asked`: the node that it was asked for on, None for any; `prepared`: the container that
    it holds ready for a sandbox, or is about to, and `pool`: for whom; `container`: that one, once it is ready.
    `untold`: the key of a container that it knows of, though perhaps not that a sandbox has it."""

    id: str
    shape: SlotShape
    handle: Any
    node_id: str | None = None
    idle_since: float = 0.0
    asked: str | None = None
    prepared: ContainerShape | None = None
    pool: str = ""
    container: ContainerStarted | None = None
    untold: str | None = None

    def give_prepared(self, spec: SandboxSpec) -> SandboxStarted | None:
        """Gives a sandbox the container that the slot holds ready, if that is all that `spec` wants. Then the sandbox
        runs, once that is on record: its slot need not be asked, only told."""
        there = self.container
        if there is None or self.prepared != spec.container_shape or not spec.is_as_prepared:
            return None
        self.prepared = self.container = None
        self.untold = there.key
        return SandboxStarted(there.key, there.node_id, there.relay, time.time(), warm=True, machine=there.machine)

    def must_hear_of(self, started: SandboxStarted | None) -> bool:
        """Whether a sandbox that has `started` was given what the slot holds ready, and the slot may not know."""
        return started is not None and started.key == self.untold
