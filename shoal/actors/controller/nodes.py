"""The machines of the cluster: finds them, gives each a node actor, and notices when one is lost."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.actor import ActorHandle

from shoal.actors.controller.placement import Machine
from shoal.actors.handles import call
from shoal.actors.names import REGION_LABEL, node_options
from shoal.actors.node.actor import NodeActor
from shoal.model.errors import ShoalError, Unavailable
from shoal.model.info import NodeInfo
from shoal.model.settings import Settings
from shoal.model.spec import MIB

log = logging.getLogger("shoal.nodes")

_ANSWER_S = 30.0
_LOST_AFTER = 3
"""A node is lost after Ray called it dead this many times in a row."""


@dataclass(slots=True)
class Node:
    """One machine: its node actor, its last answer and its last error. `missed`: how often in a row Ray did not list it
    as alive."""

    id: str
    handle: ActorHandle[Any]
    resources: dict[str, float]
    labels: dict[str, str]
    info: NodeInfo | None = None
    error: ShoalError | None = None
    missed: int = 0


@dataclass(slots=True)
class Nodes:
    """The machines that Ray knows, by its node ids."""

    settings: Settings
    cluster: str
    secret: bytes
    _nodes: dict[str, Node] = field(default_factory=dict)
    _class: Any = None  # the Ray class of `NodeActor`, which has no type

    async def refresh(self) -> list[str]:
        """Asks Ray for the machines once: new ones get a node actor, and all are asked for their state. Returns the ids
        of lost machines."""
        if self._class is None:
            self._class = ray.remote(NodeActor)
        seen = {n["NodeID"]: n for n in await asyncio.to_thread(ray.nodes) if n["Alive"]}
        for node_id, facts in seen.items():
            if node_id not in self._nodes:
                handle = self._class.options(**node_options(node_id)).remote(
                    self.settings.to_dict_for_others(), self.cluster, self.secret
                )
                self._nodes[node_id] = Node(node_id, handle, facts["Resources"], facts.get("Labels", {}))
        lost = []
        for node in list(self._nodes.values()):
            node.missed = 0 if node.id in seen else node.missed + 1
            if node.missed >= _LOST_AFTER:
                lost.append(node.id)
                del self._nodes[node.id]
        await asyncio.gather(*(self._ask(node) for node in self._nodes.values() if node.missed == 0))
        return lost

    async def _ask(self, node: Node) -> None:
        try:
            node.info = await call(node.handle, "info", timeout_s=_ANSWER_S)
            node.error = None
        except ShoalError as error:
            node.error = error
            log.warning("node %s: %s", node.id[:8], error)

    def handle(self, node_id: str) -> ActorHandle[Any]:
        """The node actor of a machine; `Unavailable` if the machine is not part of the cluster."""
        node = self._nodes.get(node_id)
        if node is None:
            raise Unavailable(f"node {node_id[:8]} is not part of the cluster")
        return node.handle

    def failure(self) -> ShoalError | None:
        """The error that keeps a machine from taking part, if waiting cannot help."""
        return next((n.error for n in self._nodes.values() if n.error is not None and not n.error.retryable), None)

    def alive(self, node_id: str) -> bool:
        """Whether Ray listed the machine as alive when last asked."""
        node = self._nodes.get(node_id)
        return node is not None and node.missed == 0

    def relay(self, node_id: str, otherwise: str) -> str:
        """The address of a machine's relay now."""
        node = self._nodes.get(node_id)
        return otherwise if node is None or node.info is None else node.info.address

    def machines(self) -> list[Machine]:
        """The capacity of each machine whose node actor has answered."""
        return [
            Machine(
                cores=node.info.cpu_total,
                memory=node.info.memory_total,
                cpu_shares=node.resources.get("CPU", 0.0),
                memory_shares=int(node.resources.get("memory", 0) / MIB),
                gpus=int(node.resources.get("GPU", 0)),
                region=node.labels.get(REGION_LABEL),
                runtimes=node.info.runtimes,
            )
            for node in self._nodes.values()
            if node.info is not None
        ]

    async def infos(self) -> list[NodeInfo]:
        """The nodes as callers see them, with the free resources that Ray reports."""
        per_node = await asyncio.to_thread(free_resources)
        result = []
        for node in self._nodes.values():
            if node.info is not None:
                free = per_node.get(node.id, {})
                result.append(
                    replace(
                        node.info,
                        alive=node.missed == 0,
                        cpu_total=node.resources.get("CPU", 0.0),
                        cpu_free=free.get("CPU", 0.0),
                        memory_total=int(node.resources.get("memory", 0) / MIB),
                        memory_free=int(free.get("memory", 0) / MIB),
                    )
                )
        return result

    def handles(self) -> list[ActorHandle[Any]]:
        return [node.handle for node in self._nodes.values()]


def free_resources() -> dict[str, dict[str, float]]:
    """The free resources of each node, by its id. Blocks for a millisecond."""
    from ray._private.state import available_resources_per_node

    result: dict[str, dict[str, float]] = available_resources_per_node()  # type: ignore[no-untyped-call]
    return result
