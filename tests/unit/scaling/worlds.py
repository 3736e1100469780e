"""Builders for the tests of scaling."""

from __future__ import annotations

from typing import Any

from shoal.cluster.scaling.deciding import Limits, Observation, Seen
from shoal.model.capacity import NodeType, WaitingSandboxes


def kind(name: str, **given: Any) -> NodeType:
    """A type of 4 cores and 8 GiB, by its full name."""
    return NodeType(**{"cpu": 4, "memory": 8192, "region": name.partition(".")[0], "max": 10, "name": name, **given})


def limits(*types: NodeType, **given: Any) -> Limits:
    """Two regions where none is given."""
    values: dict[str, Any] = {
        "types": types or (kind("eu.cpu"), kind("us.cpu")),
        "least": {},
        "prices": {},
        "regions": {},
        "max_nodes": 1000,
        "max_cost": None,
        "idle_timeout": 60.0,
    }
    return Limits(**{**values, **given})


def waiting(count: int = 1, **given: Any) -> WaitingSandboxes:
    """Sandboxes of one core and 1 GiB, that wait for 10 s."""
    values: dict[str, Any] = {
        "cpu": 1.0,
        "memory": 1024,
        "gpu": 0,
        "runtime": "runc",
        "regions": (),
        "zone": None,
        "oldest_s": 10.0,
    }
    return WaitingSandboxes(**{**values, "count": count, **given})


def node(machine_id: str, type_name: str = "eu.cpu", **given: Any) -> Seen:
    """A node of the type of `kind` that is empty since just now."""
    values: dict[str, Any] = {
        "node_id": f"node-{machine_id}",
        "free": (4.0, 8192.0, 0.0),
        "sandboxes": 0,
        "empty_s": 0.0,
    }
    return Seen(machine_id, type_name, **{**values, **given})


def seen(*machines: Seen, now: float = 1000.0, **given: Any) -> Observation:
    return Observation(now, machines, **given)
