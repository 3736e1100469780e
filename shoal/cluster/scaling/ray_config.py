"""Ray's own autoscaler configuration, out of a cluster's description and what was decided. Pure.

Ray reads the file in each of its rounds. The keys are those without which it (2.60) refuses the file or does something
else than is meant here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from shoal.cluster.scaling.spec import ClusterSpec, NodeTypeSpec, region_of, types_of

HEAD_TYPE = "head"
HEAD_ID = "head"
"""The id of the head's machine for Ray, which has to find it in the list."""

REGION_LABEL = "ray.io/availability-region"
ZONE_LABEL = "ray.io/availability-zone"

PROVIDER = "shoal.cluster.scaling.ray_provider.FleetProvider"

ROUND_S = 2
"""Seconds between Ray's rounds; by default five, which every first sandbox in a region would wait longer."""

_IDLE_S = 15.0
"""Ray takes away a machine without any actor after so long. That is one that has left, or that has only just joined,
whose node actor starts within a second or two."""


def ray_config(
    cluster: ClusterSpec,
    state_dir: str,
    head_cpus: int,
    cpu_overcommit: float,
    most: Mapping[str, int] | None = None,
    least: Mapping[str, int] | None = None,
    log_format: str = "text",
) -> str:
    """The text of the file. `most`, `least`: machines of each type, by default as described. A type that `most` names
    and the description does not has machines still: Ray must know of it."""
    kinds = dict(types_of(cluster))
    regions = [*dict.fromkeys(map(region_of, kinds))]
    types: dict[str, Any] = {
        HEAD_TYPE: {"resources": {"CPU": head_cpus}, "node_config": {}, "min_workers": 0, "max_workers": 0}
    }
    for name, kind in kinds.items():
        highest = kind.max if most is None else most.get(name, 0)
        lowest = kind.min if least is None else least.get(name, 0)
        types[name] = {
            "resources": resources(kind, cpu_overcommit),
            "labels": labels(name, kind),
            "node_config": {},
            "min_workers": min(lowest, highest),
            "max_workers": highest,
            "idle_timeout_s": _IDLE_S,
            # Where all else is equal, the first region of the file.
            "priority": len(regions) - regions.index(region_of(name)),
        }
    for name, count in (most or {}).items():
        if name not in types:
            types[name] = {
                "resources": {},
                "node_config": {},
                "min_workers": 0,
                "max_workers": count,
                "idle_timeout_s": _IDLE_S,
            }
    config = {
        "cluster_name": cluster.name,
        "provider": {
            "type": "external",
            "module": PROVIDER,
            "state_dir": state_dir,
            "log_format": log_format,
            # Machines install and start Ray themselves, and an edited description restarts none of them.
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "max_workers": max(cluster.max_nodes, sum(each["max_workers"] for each in types.values())),
        "upscaling_speed": 1000.0,  # by default one node of a type every five seconds
        "idle_timeout_minutes": 1,
        "head_node_type": HEAD_TYPE,
        "available_node_types": types,
        "cluster_synced_files": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }
    return str(yaml.safe_dump(config, sort_keys=False))


def resources(kind: NodeTypeSpec, cpu_overcommit: float) -> dict[str, int]:
    """What a node of the type tells Ray that it has."""
    found = {"CPU": cpus(kind, cpu_overcommit), "memory": kind.memory << 20}
    return {**found, "GPU": kind.gpus} if kind.gpus else found


def cpus(kind: NodeTypeSpec, cpu_overcommit: float) -> int:
    """The CPUs that Ray may assign on a node of the type."""
    return max(1, round(kind.cpus * cpu_overcommit))


def labels(name: str, kind: NodeTypeSpec) -> dict[str, str]:
    """The Ray labels of a node of the type."""
    zone = {} if kind.zone is None else {ZONE_LABEL: kind.zone}
    return {**kind.labels, REGION_LABEL: region_of(name), **zone}


def monitor_environment(cluster: ClusterSpec) -> dict[str, str]:
    """Variables of Ray's monitor. By default it takes an hour until it gives up a machine that does not join."""
    return {
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": str(ROUND_S),
        "AUTOSCALER_MAX_LAUNCH_BATCH": str(cluster.launch_batch),
        "AUTOSCALER_MAX_CONCURRENT_LAUNCHES": str(cluster.launches_at_once),
        "RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S": str(round(cluster.join_timeout)),
        "RAY_AUTOSCALER_RECONCILE_REQUEST_STATUS_TIMEOUT_S": "180",
        "RAY_AUTOSCALER_RECONCILE_TERMINATING_STATUS_TIMEOUT_S": "120",
    }
