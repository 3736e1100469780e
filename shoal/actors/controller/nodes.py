"""The machines of the cluster: finds them, gives each a node actor, and notices when one is lost.

Ray says which machines live, and each node actor tells its state. They are asked apart from one another, so one that
does not answer delays no other.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import ray
from ray.actor import ActorHandle

from shoal.actors.controller.machine import Machine
from shoal.actors.handles import call
from shoal.actors.messages import OVERTAKEN, NodeFailure
from shoal.actors.names import HEAD_RESOURCE, MACHINE_LABEL, REGION_LABEL, ZONE_LABEL, node_options
from shoal.actors.node.actor import NodeActor
from shoal.model import grants, tasks
from shoal.model.errors import DeadlineExceeded, FailedPrecondition, Internal, ShoalError, Unavailable
from shoal.model.info import Cordon, NodeInfo
from shoal.model.metrics import Series
from shoal.model.settings import Settings
from shoal.model.spec import MIB

log = logging.getLogger("shoal.nodes")

ANSWER_S = 10.0
"""Seconds that a node actor has for its answer. It is asked again after that."""

COUNTS_S = 10.0
"""How old, at most, what a node's programs have counted is when it is asked for again."""

LOST_S = 15.0
"""A machine is lost at once if Ray says that it is dead: it never takes that back. One that Ray does not list is lost
if for so many seconds nothing was heard of it: a GCS that was restarted has forgotten it, or not heard of it yet."""


def _list_machines() -> Sequence[Mapping[str, Any]]:
    machines: Sequence[Mapping[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return machines


def _kill(handle: ActorHandle[Any]) -> None:
    ray.kill(handle, no_restart=True)


def _nobody(node_id: str) -> None:
    """Is told of nodes, and does nothing."""


def _nothing() -> None:
    pass


@dataclass(slots=True)
class Node:
    """One machine: its node actor, its last answer, and its last error if that came later. `missing_since`: when Ray
    first did not list it as alive and nothing was heard of it since; `asking`: the question that it has not answered
    yet; `address`, `port`: where Ray's process there listens; `addresses`: all of its interfaces', None until it
    told; `capacity`: what it can hold, None until it told; `series`: what its programs have counted, as of `counted_at`
    of the clock."""

    id: str
    handle: ActorHandle[Any]
    resources: dict[str, float]
    labels: dict[str, str]
    hostname: str
    info: NodeInfo | None = None
    error: ShoalError | None = None
    missing_since: float | None = None
    asking: asyncio.Task[None] | None = None
    address: str = ""
    addresses: tuple[str, ...] | None = None
    port: int = 0
    capacity: Machine | None = None
    series: Mapping[Series, float] = field(default_factory=dict)
    counted_at: float | None = None

    @property
    def machine(self) -> str | None:
        """What a machine that has joined calls itself, known before its node actor answers."""
        return self.labels.get(MACHINE_LABEL)

    @property
    def is_head(self) -> bool:
        return HEAD_RESOURCE in self.resources

    @property
    def region(self) -> str | None:
        return self.labels.get(REGION_LABEL)

    @property
    def zone(self) -> str | None:
        return self.labels.get(ZONE_LABEL)


@dataclass(slots=True)
class Nodes:
    """The machines that Ray knows, by its node ids. `call`: how actors are called; `list_machines`: as `ray.nodes`,
    `kill`: ends an actor for good; both block. `on_lost`: is told of each lost machine once, whoever asked;
    `on_joined`: of each that answers for the first time. `epoch`: the controller's number in the store;
    `on_overtaken`: is told where a node obeys a later one."""

    settings: Settings
    cluster: str
    secret: bytes
    call: Callable[..., Awaitable[Any]] = call
    clock: Callable[[], float] = time.monotonic
    list_machines: Callable[[], Sequence[Mapping[str, Any]]] = _list_machines
    kill: Callable[[ActorHandle[Any]], None] = _kill
    on_lost: Callable[[str], None] = _nobody
    on_joined: Callable[[str], None] = _nobody
    epoch: int = 0
    on_overtaken: Callable[[], None] = _nothing
    cordons: dict[str, Cordon] = field(default_factory=dict)
    """By node; those that are on record. `machines.py` keeps them."""
    _nodes: dict[str, Node] = field(default_factory=dict)
    _leaving: set[str] = field(default_factory=set)
    _listed: dict[str, tuple[str, ...]] = field(default_factory=dict)  # what each that Ray lists is called, by its id
    _kinds: frozenset[Machine] = frozenset()
    _closed: tuple[list[str], bool] | None = None  # `cluster_addresses`, until a machine comes, goes or changes
    _class: Any = None  # the Ray class of `NodeActor`, which has no type

    async def refresh(self, *, wait_s: float = 0.0, new_only: bool = False) -> list[str]:
        """Asks Ray for the machines once: new ones get a node actor, and those that have no question to answer are
        asked for their state (`new_only`: those that never answered). Returns the ids of lost machines, after at most
        `wait_s` for the answers."""
        listed = await asyncio.to_thread(self.list_machines)
        seen = {n["NodeID"]: n for n in listed if n["Alive"]}
        dead = {n["NodeID"] for n in listed if not n["Alive"]}
        for node_id, facts in seen.items():
            if node_id not in self._nodes and not self._gone(node_id):
                handle = self._make_actor(node_id)
                self._closed = None
                labels, hostname = facts.get("Labels", {}), facts.get("NodeManagerHostname", "")
                self._nodes[node_id] = Node(
                    node_id,
                    handle,
                    facts["Resources"],
                    labels,
                    hostname,
                    address=facts.get("NodeManagerAddress", ""),
                    port=facts.get("NodeManagerPort", 0),
                )
        self._listed = {node_id: _names(facts) for node_id, facts in seen.items()}
        now = self.clock()
        for node in self._nodes.values():
            if node.id in seen:
                node.missing_since = None
            elif node.missing_since is None:
                node.missing_since = now
            if node.asking is None and not (new_only and node.info is not None):
                node.asking = tasks.supervise(
                    partial(self._ask, node), "ask node", attempts=1, failed=partial(_unanswered, node)
                )
        lost = [
            node
            for node in self._nodes.values()
            if node.id in dead or (node.missing_since is not None and now - node.missing_since >= LOST_S)
        ]
        for node in lost:
            self._forget(node)
            self.on_lost(node.id)
        asking = [node.asking for node in self._nodes.values() if node.asking is not None]
        if asking and wait_s > 0:
            await asyncio.wait(asking, timeout=wait_s)
        return [node.id for node in lost]

    async def leave(self, node_id: str, timeout_s: float) -> None:
        """Has a node undo what it did to its machine, and ends its actor; the controller makes no other there. Raises
        what could not be undone, or `DeadlineExceeded`: then the node is part of the cluster again."""
        node = self._nodes.get(node_id)
        if node is None:
            return
        self._leaving.add(node_id)
        self._forget(node)
        try:
            await self.call(node.handle, "close", timeout_s=timeout_s)
            await asyncio.to_thread(self.kill, node.handle)
        except BaseException:
            self._leaving.discard(node_id)
            raise

    def come_back(self, node_id: str) -> None:
        """A node that has left may have a node actor again."""
        self._leaving.discard(node_id)

    def drained(self, name: str) -> str | None:
        """The only node of that id, the beginning of one, machine or host name that has left by a drain."""
        left = [cordon.node_id for cordon in self.cordons.values() if cordon.left]
        found = [node_id for node_id in left if name in (node_id, *self._listed.get(node_id, ()))]
        found = found or [node_id for node_id in left if name and node_id.startswith(name)]
        return found[0] if len(found) == 1 else None

    def _gone(self, node_id: str) -> bool:
        cordon = self.cordons.get(node_id)
        return node_id in self._leaving or (cordon is not None and cordon.left)

    async def close(self, timeout_s: float) -> list[NodeFailure]:
        """Has every node undo what it did to its machine, all at once, and stops asking them. Returns those that failed
        or took longer than `timeout_s`."""
        nodes = [*self._nodes.values()]
        for node in nodes:
            if node.asking is not None:
                node.asking.cancel()
        closing = (self.call(node.handle, "close", timeout_s=timeout_s) for node in nodes)
        outcomes = await asyncio.gather(*closing, return_exceptions=True)
        return [
            NodeFailure(node.id, node.hostname, _told(outcome))
            for node, outcome in zip(nodes, outcomes, strict=True)
            if isinstance(outcome, BaseException)
        ]

    def _make_actor(self, node_id: str) -> ActorHandle[Any]:
        if self._class is None:
            self._class = ray.remote(NodeActor)
        settings = self.settings.to_dict_for_others()
        handle: ActorHandle[Any] = self._class.options(**node_options(node_id)).remote(
            settings, self.cluster, self.secret
        )
        return handle

    def _forget(self, node: Node) -> None:
        del self._nodes[node.id]
        self._closed = None
        self._kinds = frozenset(self.capacities().values())
        if node.asking is not None:
            node.asking.cancel()

    async def _ask(self, node: Node) -> None:
        info = await self._info(node)
        # Told at each look, so that a call that is lost does no harm; and before anything is placed there.
        if self._closed is None:
            self._closed = cluster_addresses(self._nodes.values())
        addresses = tuple(await self.call(node.handle, "close_off", *self._closed, timeout_s=ANSWER_S))
        if addresses != node.addresses:
            node.addresses, self._closed = addresses, None
        if node.counted_at is None or self.clock() - node.counted_at >= COUNTS_S:
            node.counted_at = self.clock()
            try:
                node.series = await self.call(node.handle, "series", timeout_s=ANSWER_S)
            except ShoalError as error:  # what it counts says nothing of whether it is well
                log.warning("node %s does not tell what it has counted: %s", node.id[:8], error)
        joined = node.info is None
        node.info = info
        node.error = node.asking = node.missing_since = None
        capacity = _capacity(node, info)
        if capacity != node.capacity:
            node.capacity = capacity
            self._kinds = frozenset(self.capacities().values())
        if joined:
            self.on_joined(node.id)

    async def _info(self, node: Node) -> NodeInfo:
        try:
            info: NodeInfo = await self.call(node.handle, "info", self.epoch, timeout_s=ANSWER_S)
        except FailedPrecondition as error:
            if error.state == OVERTAKEN:
                self.on_overtaken()
            raise
        return info

    def handle(self, node_id: str) -> ActorHandle[Any]:
        """The node actor of a machine; `Unavailable` if the machine is not part of the cluster."""
        node = self._nodes.get(node_id)
        if node is None:
            raise Unavailable(f"node {node_id[:8]} is not part of the cluster")
        return node.handle

    def find(self, name: str) -> Node | None:
        """The machine of that id, or that calls itself so."""
        return self._nodes.get(name) or next((node for node in self._nodes.values() if node.machine == name), None)

    def cordoned(self) -> Mapping[str, str]:
        """Where no new sandbox may start, and why, by node."""
        return {cordon.node_id: cordon.why for cordon in self.cordons.values()}

    def failure(self) -> ShoalError | None:
        """The error that keeps a machine from taking part, if waiting cannot help. On a slow machine the node actor may
        be a while in starting: an answer that was not there in time is none."""
        errors = (node.error for node in self._nodes.values() if not isinstance(node.error, DeadlineExceeded))
        return next((error for error in errors if error is not None and not error.retryable), None)

    def known_nodes(self) -> list[Node]:
        return list(self._nodes.values())

    def known(self, node_id: str) -> bool:
        """Whether the machine is part of the cluster; also one that has just stopped to answer."""
        return node_id in self._nodes

    def listed(self, node_id: str) -> bool:
        """Whether the machine is part of the cluster, or of Ray though it has left."""
        return node_id in self._nodes or node_id in self._listed

    def alive(self, node_id: str) -> bool:
        """Whether Ray listed the machine as alive when last asked."""
        node = self._nodes.get(node_id)
        return node is not None and node.missing_since is None

    def of_machine(self, machine: str) -> str | None:
        """The id of the living node that the machine is now."""
        living = (node for node in self._nodes.values() if node.missing_since is None and node.info is not None)
        return next((node.id for node in living if node.info is not None and node.info.machine == machine), None)

    def fetches(self, node_id: str) -> bool:
        """Whether the node can start sandboxes from images that were made elsewhere, as far as it told."""
        node = self._nodes.get(node_id)
        return node is not None and node.info is not None and node.info.fetches_images

    def still(self, node_id: str) -> tuple[str, ...]:
        """The node's mounts that do not answer, as far as it told."""
        node = self._nodes.get(node_id)
        return () if node is None or node.info is None else node.info.still

    def machine_of(self, node_id: str) -> str | None:
        """The id that the node's machine keeps, once it told."""
        node = self._nodes.get(node_id)
        return None if node is None or node.info is None else node.info.machine

    def hostname(self, node_id: str) -> str:
        """The machine's name for people, if it is known."""
        node = self._nodes.get(node_id)
        return "" if node is None else node.hostname

    def relay(self, node_id: str, otherwise: str) -> str:
        """How clients reach a machine's relay now."""
        node = self._nodes.get(node_id)
        if node is None or node.info is None:
            return otherwise
        return grants.endpoint(node.info.address, node.info.fingerprint)

    def machines(self) -> frozenset[Machine]:
        """What machines there are whose node actor has answered. Asked at each create: of hundreds that are alike one
        says it all."""
        return self._kinds

    def capacities(self) -> dict[str, Machine]:
        """The capacity of each by the machine's id."""
        return {node.id: node.capacity for node in self._nodes.values() if node.capacity is not None}

    async def infos(self) -> list[NodeInfo]:
        """The nodes as callers see them, with the free resources that Ray reports."""
        per_node = await asyncio.to_thread(free_resources)
        nodes = self._nodes.values()
        return [self.info(node, per_node.get(node.id, {})) for node in nodes if node.info is not None]

    def info(self, node: Node, free: Mapping[str, float] = MappingProxyType({})) -> NodeInfo:
        """A node as callers see it; one that has not answered yet is an `Unavailable`. `free`: what Ray says."""
        if node.info is None:
            raise node.error or Unavailable(f"node {node.id[:8]} has not answered yet; try again")
        return replace(
            node.info,
            alive=node.missing_since is None and node.error is None,
            cpu_total=node.resources.get("CPU", 0.0),
            cpu_free=free.get("CPU", 0.0),
            memory_total=int(node.resources.get("memory", 0) / MIB),
            memory_free=int(free.get("memory", 0) / MIB),
            cordon=self.cordons.get(node.id),
            zone=node.zone,
            gpus=int(node.resources.get("GPU", 0)),
            gpus_free=int(free.get("GPU", 0)),
        )

    def handles(self) -> list[ActorHandle[Any]]:
        return [node.handle for node in self._nodes.values()]


def _names(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """What a machine calls itself, and its host's name."""
    return tuple(filter(None, (facts.get("Labels", {}).get(MACHINE_LABEL), facts.get("NodeManagerHostname"))))


def _capacity(node: Node, info: NodeInfo) -> Machine:
    return Machine(
        cores=info.cpu_total,
        memory=info.memory_total,
        cpu_shares=node.resources.get("CPU", 0.0),
        memory_shares=int(node.resources.get("memory", 0) / MIB),
        gpus=int(node.resources.get("GPU", 0)),
        region=node.region,
        runtimes=info.runtimes,
        pids=info.pids,
        zone=node.zone,
        disk=info.disk_total,
    )


def cluster_addresses(nodes: Iterable[Node]) -> tuple[list[str], bool]:
    """(the known addresses of all machines, whether every machine told its own). After a restart of the controller a
    machine that does not answer must stay closed to the others."""
    known = list(nodes)
    found = {address for node in known for address in (node.address, *(node.addresses or ())) if address}
    return sorted(found), all(node.addresses is not None for node in known)


def _unanswered(node: Node, error: Exception) -> None:
    node.asking = None
    node.error = _told(error)


def _told(error: BaseException) -> ShoalError:
    return error if isinstance(error, ShoalError) else Internal(f"the node actor: {error!r}")


def free_resources() -> dict[str, dict[str, float]]:
    """The free resources of each node, by its id. Blocks: 10 to 20 ms."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    return {
        node.node_id: {each.resource_name: each.total - each.used for each in node.resource_usage.usage}
        for node in (*status.active_nodes, *status.idle_nodes)
        if node.node_id is not None and node.resource_usage is not None
    }
