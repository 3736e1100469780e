"""The JSON of tokens, environments, the audit log, events, nodes and health checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import Field

from shoal.cluster.api.schema.control import MAX_SECONDS, Sent, Told
from shoal.model import ids
from shoal.model.access import Quota, Scope
from shoal.model.field_types import Name
from shoal.model.verbs import LONGEST_WAIT_S


class QuotaModel(Sent):
    """The most that an environment's living sandboxes may use together; null: no bound."""

    sandboxes: Annotated[int, Field(ge=0, le=1 << 31)] | None = None
    cpu: Annotated[float, Field(ge=0, le=1e9)] | None = None
    """Cores, by their limits"""
    memory: Annotated[int, Field(ge=0, le=1 << 53)] | None = None
    """MiB, by their limits"""
    creates_per_minute: Annotated[int, Field(ge=0, le=1 << 31)] | None = None
    volume_bytes: Annotated[int, Field(ge=0, le=1 << 53)] | None = None
    """The sum of its volumes' limits"""
    volume_files: Annotated[int, Field(ge=0, le=1 << 53)] | None = None
    """The same, of files and directories"""

    def quota(self) -> Quota:
        return Quota(**dict(self))


class EnvironmentCreate(Sent):
    """A new environment."""

    name: Annotated[Name, Field(examples=["team-a"])]
    quota: QuotaModel = QuotaModel()


class EnvironmentModel(Told):
    """An environment, what it may use and what it uses."""

    name: str
    quota: QuotaModel
    created_at: float
    usage: QuotaModel


class Environments(Told):
    """The environments that the token may see, by name."""

    environments: Sequence[EnvironmentModel]


class TokenCreate(Sent):
    """A new token."""

    name: Annotated[str, Field(min_length=1, max_length=256, examples=["ann's laptop"])]
    """For people: what it is for"""
    environment: Annotated[str, Field(min_length=1, max_length=64, pattern=rf"^(\*|{ids.NAME.pattern})$")] | None = None
    """The only one that it sees; `*`: all. By default that of the requesting token, or `main`"""
    scope: Annotated[Scope, Field(strict=False)] = Scope.RUN
    expires_in: Annotated[float, Field(gt=0, le=100 * MAX_SECONDS)] | None = None
    """Seconds until it expires; none: never"""


class Token(Told):
    """A token without its secret. Times in unix seconds."""

    id: str
    name: str
    environment: str
    scope: Scope
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    last_used_at: float | None
    created_by: str | None


class NewToken(Token):
    """A new token."""

    token: str
    """The bearer token to send. It is shown only this once"""


class Tokens(Told):
    """The tokens that the token may see, newest first."""

    tokens: Sequence[Token]


class Entry(Told):
    """What somebody did, or was refused."""

    id: int
    at: float
    action: str
    outcome: str
    """`ok`, or an error's code"""
    token: str
    environment: str
    target: str | None
    request_id: str | None
    address: str | None


class Audit(Told):
    """Entries of the audit log, newest first."""

    entries: Sequence[Entry]


class EventModel(Told):
    """One change in a sandbox's life."""

    id: int
    at: float
    environment: str
    sandbox_id: str
    kind: str
    data: dict[str, Any]


class Events(Told):
    """Events, oldest first."""

    events: Sequence[EventModel]


NodeId = Annotated[str, Path(description="The node's id.", min_length=1, max_length=128)]
"""A path parameter `node`."""

_Why = Annotated[str, Field(min_length=1, max_length=256)]


class NewCordon(Sent):
    """Why no new sandbox starts on a node."""

    why: _Why


class NewDrain(Sent):
    """How to empty a node. `force`: its sandboxes are ended, with the reason `evicted`; `timeout`: seconds to wait."""

    why: _Why = "drained"
    force: bool = False
    timeout: Annotated[float, Field(ge=0, le=LONGEST_WAIT_S, allow_inf_nan=False)] = LONGEST_WAIT_S


class NodeDrain(Told):
    """How far it is: the sandboxes that still run there; whether it has left the cluster."""

    node_id: str
    sandboxes: int
    left: bool


class Cordon(Told):
    """Why no new sandbox starts on a node, who said so (a token's id), and when. `left`: it has left the cluster."""

    node_id: str
    why: str
    by: str
    at: float
    left: bool


class Node(Told):
    """One node: what it has, what runs on it. Memory and disk in MiB, CPU in cores; `pids`: the most processes and
    threads of all its sandboxes together; `disk_limit`: who holds a sandbox to its `disk`; `remains`: ended sandboxes
    whose files are not removed yet; `stopped`: persistent sandboxes that are stopped, whose disks are here; `machine`:
    an id that the machine keeps; `cordon`: set if no new sandbox starts here; `gpus`: whole devices."""

    id: str
    address: str
    hostname: str
    region: str | None
    engine: str
    runtimes: Sequence[str]
    alive: bool
    sandboxes: int
    warm: int
    cpu_total: float
    cpu_free: float
    memory_total: int
    memory_free: int
    pids: int
    disk_total: int
    disk_limit: Literal["kernel", "watch"]
    remains: int
    stopped: int
    machine: str
    cordon: Cordon | None
    zone: str | None
    gpus: int
    gpus_free: int
    fetches_images: bool
    """Whether it starts sandboxes from images that were made on other machines"""
    cpu_used: float
    """Cores that the whole machine uses, whoever does, seconds ago; so `memory_used` and `disk_used`, in MiB"""
    memory_used: int
    disk_used: int
    mounts: int
    """Volumes and the like that it has mounted"""
    mounts_still: int
    """Of these, those that do not answer"""


class Nodes(Told):
    """The nodes of the cluster."""

    nodes: Sequence[Node]


class Health(Told):
    """This replica answers."""

    status: Literal["ok"]
    version: str
