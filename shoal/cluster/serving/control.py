"""Starting, rolling and ending the API, from a process that is connected to Ray. All calls block."""

from __future__ import annotations

from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import ProxyLocation

from shoal.actors.handles import find_actor
from shoal.actors.names import node_actor_name
from shoal.cluster.serving.deployment import APPLICATION, application
from shoal.model.errors import Unavailable
from shoal.model.ray_errors import translate

_HEAD = "node:__internal_head__"
_GATEWAY_S = 60.0


def start(settings: dict[str, Any], cluster: str) -> None:
    """Deploys the API and opens its gateway; where they run, replaces replicas and gateway, which end what they do.

    Returns once requests are answered.
    """
    serve.start(ProxyLocation.Disabled)
    try:
        serve.run(application(settings, cluster), name=APPLICATION, route_prefix=None)
    except RuntimeError as error:
        raise Unavailable(f"the API does not start: {error}; see the logs of Serve in Ray's session") from None
    _ask_node("open_gateway")


def roll(settings: dict[str, Any], cluster: str) -> None:
    """As `start`, and the gateway is replaced, too."""
    start(settings, cluster)
    _ask_node("roll_gateway")


def stop() -> None:
    """Ends the API's replicas and all of Serve; the gateway stays. Nothing happens where it does not run."""
    serve.shutdown()  # type: ignore[no-untyped-call]


def _ask_node(method: str) -> None:
    """Calls a method of the head's node actor."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    heads = [node["NodeID"] for node in nodes if node["Alive"] and _HEAD in node["Resources"]]
    actor = find_actor(node_actor_name(heads[0])) if heads else None
    if actor is None:
        raise Unavailable("the head has no node actor; run `shoal up`")
    try:
        ray.get(getattr(actor, method).remote(), timeout=_GATEWAY_S)
    except RayError as error:
        raise translate(error, f"the head's node actor ({method})") from None
