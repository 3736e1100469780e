"""The cluster and its nodes."""
# mypy: disable-error-code="empty-body"

from __future__ import annotations

from typing import Any

from shoal.model.access import Scope
from shoal.model.info import NodeDrain, NodeInfo
from shoal.model.verbs.verb import verb


@verb(Scope.READ, "GET /v1/defaults")
def defaults() -> dict[str, Any]:
    """What a sandbox gets when its creator does not say: `SandboxDefaults` as a dict."""


@verb(Scope.READ, "GET /v1/nodes", everywhere=True, many="nodes")
def nodes() -> list[NodeInfo]:
    """The nodes of the cluster."""


@verb(Scope.ADMIN, "PUT /v1/nodes/{node}/cordon", everywhere=True, audit="node.cordon")
def cordon(node: str, why: str) -> NodeInfo:
    """From now on no new sandbox starts on the node; what runs there goes on. `node`: its id, or what the machine calls
    itself. Again: the reason is replaced. `NodeNotFound`."""


@verb(Scope.ADMIN, "DELETE /v1/nodes/{node}/cordon", everywhere=True, audit="node.uncordon")
def uncordon(node: str) -> NodeInfo:
    """New sandboxes may start on the node again. Without a cordon nothing happens. `NodeNotFound`."""


@verb(Scope.ADMIN, "POST /v1/nodes/{node}/drain", everywhere=True, audit="node.drain", takes="timeout")
def drain_node(node: str, why: str, force: bool, timeout: float) -> NodeDrain:
    """Cordons the node, waits up to `timeout` seconds (30 at most) until it is empty, and has it leave the cluster:
    its slots end, and all that Shoal did to the machine is undone. Ask again until it has left. `force`: what runs
    there is ended first, with the reason `evicted`. `NodeNotFound`."""
