"""The messages between the actors: plain values that import only the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shoal.model.errors import ShoalError
from shoal.model.spec import ContainerShape, SlotShape
from shoal.model.states import RETURNCODES, Reason

OCCUPIED = "occupied"
"""The state in which a slot refuses a second sandbox."""

OVERTAKEN = "overtaken"
"""The state in which the store and the nodes refuse a controller after which another has taken over."""


@dataclass(frozen=True, slots=True)
class ContainerStarted:
    """Node to slot, slot to controller: a container. `relay`: host:port; `token`: admits to its agent; `warm`: it had
    been kept ready; `machine`: the id that the machine keeps; `took`: the steps of its start on the node, in seconds;
    `ships`: the node is to be told when its command has started; `resumed`: it went on from memory."""

    key: str
    node_id: str
    relay: str
    token: str
    warm: bool
    machine: str = ""
    took: tuple[tuple[str, float], ...] = ()
    ships: bool = False
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class ContainerLoss:
    """Node to slot: why a container was lost, which ends its sandbox."""

    reason: Reason
    exit_code: int | None
    message: str


@dataclass(frozen=True, slots=True)
class SandboxStarted:
    """Slot to controller: a sandbox runs. `started_at`: unix seconds; `machine`, `resumed`: as in `ContainerStarted`;
    `took`: the steps of its start, in seconds."""

    key: str
    node_id: str
    relay: str
    started_at: float
    warm: bool
    machine: str = ""
    took: tuple[tuple[str, float], ...] = ()
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class End:
    """Slot to controller: how a sandbox ended. `returncode`: of its command, negative for a signal; without one
    (None) that of the reason. `kept`: it has only stopped, and its disk is kept."""

    reason: Reason
    returncode: int | None
    message: str
    ended_at: float
    kept: bool = False

    def __post_init__(self) -> None:
        if self.returncode is None:
            object.__setattr__(self, "returncode", RETURNCODES[self.reason])


@dataclass(frozen=True, slots=True)
class NodeImage:
    """Node to controller: an image that it has made. `size` in bytes; `config`: as in `model.images.ImageRecord`."""

    digest: str
    size: int
    config: dict[str, Any]


@dataclass(frozen=True, slots=True)
class NodeFailure:
    """A node that did not undo all that it had done to its machine, and why."""

    node_id: str
    hostname: str
    error: ShoalError


@dataclass(frozen=True, slots=True)
class Drained:
    """Controller to `shoal down`: how many sandboxes were ended, and what could not be taken away."""

    sandboxes: int
    failed: tuple[NodeFailure, ...] = ()


@dataclass(frozen=True, slots=True)
class SlotFacts:
    """Slot to controller: its shape, its machine and the sandbox that it holds. `prepared`: what container it holds, or
    is about to, without a sandbox, and `pool`: for whom; `key`: its container once it is ready, with a sandbox or
    without."""

    slot_id: str
    shape: SlotShape
    node_id: str
    sandbox_id: str | None
    prepared: ContainerShape | None = None
    pool: str = ""
    key: str | None = None
