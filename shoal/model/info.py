"""What the cluster tells about its sandboxes and nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from shoal.model.pickled import by_fields
from shoal.model.spec import SandboxSpec
from shoal.model.states import TERMINAL, Reason, State

MemoryState = Literal["saved", "restored"]
"""What became of a sandbox's memory: `saved`, it is suspended; `restored`, it went on from memory when it started."""

NOT_KEPT: Final = (
    "connections to the outside, and from it",
    "time: its clocks jump, and no timer counts the time between",
    "what its files were changed to by others meanwhile, if it has them open",
)
"""What memory does not bring back: for people."""


@by_fields
@dataclass(frozen=True, slots=True)
class SandboxInfo:
    """One sandbox as the controller knows it. Times in unix seconds.

    `returncode`: None while it lives; then its command's, negative for a signal, else that of its reason
    (`states.RETURNCODES`). `message` says more about the end than `reason` can; both are None while it lives. While a
    persistent one is `stopped`, all three tell of its stop, and `stopped_at` when that was. `waiting`: why it
    waits, while it does: for room, for a node that is launched. `mounted_images`: the image that was mounted at each
    path while it ran. `mounts_still`: the paths of its volumes and buckets that do not answer, seconds ago, while it
    runs; a listing does not tell them. `memory_state`: whether it is suspended, or went on from memory; None: neither.
    `not_kept`: what memory does not bring back, where it matters.
    """

    id: str
    state: State
    spec: SandboxSpec
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    reason: Reason | None = None
    returncode: int | None = None
    message: str | None = None
    node_id: str | None = None
    stopped_at: float | None = None
    waiting: str | None = None
    memory_state: MemoryState | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    mounted_images: Mapping[str, str] = field(default_factory=dict)
    mounts_still: tuple[str, ...] = ()

    @property
    def not_kept(self) -> tuple[str, ...]:
        return () if self.memory_state is None else NOT_KEPT

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        data = asdict(self)
        data["state"] = self.state.value
        data["reason"] = None if self.reason is None else self.reason.value
        return data


@dataclass(frozen=True, slots=True)
class Cordon:
    """Why no new sandbox starts on a node, who said so, and when (unix seconds). `left`: the node was emptied and has
    left the cluster."""

    node_id: str
    why: str
    by: str
    at: float
    left: bool = False


@dataclass(frozen=True, slots=True)
class NodeDrain:
    """How far the emptying of a node is. `sandboxes`: those that still run there; `left`: none, and it has left the
    cluster."""

    node_id: str
    sandboxes: int
    left: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """One node: what it has, what runs on it. Memory and disk in MiB, CPU in cores; `pids`: the most processes and
    threads of all its sandboxes together; `disk_limit`: who holds a sandbox to its `disk`; `remains`: ended sandboxes
    whose files are not removed yet; `stopped`: persistent sandboxes that are stopped, whose disks are here; `machine`:
    an id that the machine keeps, whatever Ray calls the node; `cordon`: set if no new sandbox starts here; `gpus`:
    whole devices; `fetches_images`: it can start sandboxes from images that were made on other nodes; `cpu_used`,
    `memory_used`, `disk_used`: what all of the machine uses, whoever does, seconds ago. `free`, on the other hand, is
    what sandboxes and other programs of Ray's have not requested. `mounts`: volumes and the like that it has mounted,
    `mounts_still`: those of them that do not answer, `still`: their identities; `fingerprint`: the SHA-256 of its
    relay's certificate, empty where that speaks no TLS."""

    id: str
    address: str  # host:port of its relay
    hostname: str
    region: str | None
    engine: str
    runtimes: tuple[str, ...]
    alive: bool
    sandboxes: int
    warm: int
    cpu_total: float
    cpu_free: float
    memory_total: int
    memory_free: int
    pids: int
    disk_total: int
    disk_limit: Literal["kernel", "watch"] = "kernel"
    remains: int = 0
    stopped: int = 0
    machine: str = ""
    cordon: Cordon | None = None
    zone: str | None = None
    gpus: int = 0
    gpus_free: int = 0
    fetches_images: bool = False
    cpu_used: float = 0.0
    memory_used: int = 0
    disk_used: int = 0
    mounts: int = 0
    mounts_still: int = 0
    fingerprint: str = ""
    still: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class LogChunk:
    """Saved output of a sandbox's own command, for after its end. `offset` is that of the first byte of `data`."""

    offset: int
    data: bytes
    end: bool


PageCursor = tuple[float, str]
"""Where a page of a listing ends: (created_at, id) of its last sandbox."""

SortedCursor = PageCursor | tuple[float, str, str | float]
"""The same of a listing that is sorted by something else than time: with that value of its last sandbox."""


@dataclass(frozen=True, slots=True)
class Listing:
    """Which sandboxes to list: of one environment, carrying all of `tags`, in any of `states` (empty: those that live),
    of one `region`, of one `image`, with the text `search` in id, name, image or a tag (`key:value`), upper or lower
    case.

    `sort`: their order, one of `shoal.model.sorting.SORTS`. In any but newest first it covers those that live and, of
    ended ones, the newest `limits.history`. `before`: only those that come after this one in that order: how a
    next page is asked for.
    """

    environment: str = "main"
    tags: Mapping[str, str] = field(default_factory=dict)
    states: tuple[State, ...] = ()
    include_ended: bool = False
    limit: int = 1000
    region: str | None = None
    before: SortedCursor | None = None
    image: str | None = None
    search: str | None = None
    sort: str = "-created"


@dataclass(frozen=True, slots=True)
class Page:
    """What one look at a listing found.

    `reached`: the look was long enough and ends here; the next one goes on with it as `before`, for there may be more.
    None: here are all, or as many as were asked for.
    """

    sandboxes: list[SandboxInfo]
    reached: SortedCursor | None = None
