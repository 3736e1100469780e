"""What Shoal asks of a cloud: the machines of one region.

Terms
    A *machine* is what a cloud gives, by the id that the cloud gave it. It is of one *node type*. Once it has joined
    the cluster it is a *node*. `Fleet` (fleet.py) makes one of all regions; what is here is what each sibling does.

A machine's life
    launch() → starting → running → terminate() → terminating → gone from machines().
    A machine carries the cluster's name from its first moment, set in the request that launches it and not after it:
    so a machine whose launch was never answered is in the next list, and nothing is orphaned. It joins by itself.
    Whoever launched it need not live on.

Every method may be called from several threads at once, and blocks. It takes at most about a minute.

Errors are of the classes below and no others: a sibling translates what its cloud raises. An error says what to do:

    NoCapacity     the region has none of this now: another region, and here again after a growing time
    Throttled      too many requests: the same again, later
    QuotaReached   the account may have no more of this: as NoCapacity; somebody must ask the cloud
    Unauthorized   credentials are wrong or have expired: somebody must act; what runs goes on
    Misconfigured  the cloud refuses what the configuration says (no such image, subnet, …): somebody must act
    RegionDown     the region's API does not answer, or fails: as NoCapacity
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol


class MachineState(Enum):
    """Where a machine is in its life. One that is gone is in no list."""

    STARTING = "starting"
    RUNNING = "running"
    TERMINATING = "terminating"


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine. `type`: the full name of its node type, `launched_at` in unix seconds by the cloud's clock.
    `tags`: what Ray's autoscaler had put on it."""

    id: str
    type: str
    state: MachineState
    address: str = ""
    zone: str | None = None
    spot: bool = False
    launched_at: float = 0.0
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Order:
    """What to launch. `token`: the same one never gives more machines, however often it is sent."""

    type: str
    count: int
    token: str
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Notice:
    """The cloud will take a machine away in `seconds`."""

    machine_id: str
    seconds: float


class CloudError(Exception):
    """A cloud did not do what it was asked. The message is for the operator and holds no secret."""

    kind = "error"


class NoCapacity(CloudError):
    """The region has no such machine now."""

    kind = "no_capacity"


class Throttled(CloudError):
    """Too many requests."""

    kind = "throttled"


class QuotaReached(CloudError):
    """The account's limit is reached."""

    kind = "quota"


class Unauthorized(CloudError):
    """The credentials are missing, wrong, expired, or may not do this."""

    kind = "unauthorized"


class Misconfigured(CloudError):
    """What the configuration names does not exist, or cannot be combined."""

    kind = "misconfigured"


class RegionDown(CloudError):
    """The region's API does not answer, or fails."""

    kind = "region_down"


class Launched(list[Machine]):
    """The machines that were launched; `error` where they are fewer than were ordered."""

    def __init__(self, machines: Iterable[Machine] = (), error: CloudError | None = None) -> None:
        super().__init__(machines)
        self.error = error


class Region(Protocol):
    """The machines of one cluster in one region. `settles_s`: for so long the cloud may not list a machine that it has
    launched, or list one that it has terminated; `each_s`: it is asked for its list no more often."""

    name: str
    settles_s: float
    each_s: float

    def launch(self, order: Order) -> Launched:
        """Launches up to `order.count` machines and returns at once with those that are starting.

        Raises a `CloudError` only where it launched none. Fewer than ordered: `error` in the result. After a lost
        answer the same order may be sent again.
        """

    def machines(self) -> Sequence[Machine]:
        """All the cluster's machines in the region that are not gone. Never a part of them: what is missing is taken
        for terminated. Raises a `CloudError` where the whole cannot be told."""

    def foreign_machines(self) -> Sequence[str]:
        """The ids of machines whose cluster has the same name and another head. They are in no list and are not ended
        here. Raises a `CloudError`."""

    def terminate(self, machine_ids: Sequence[str]) -> None:
        """Takes machines away, without asking what runs on them. Those that are gone, or not the cluster's, are passed
        over. Raises a `CloudError` after having tried all."""

    def notices(self) -> Sequence[Notice]:
        """The machines that the cloud is about to take away, as often as asked until they are gone. Empty where the
        cloud gives no notice. Raises a `CloudError`."""
