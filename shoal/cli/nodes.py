"""The table of a cluster's nodes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from shoal.cli import console

_COLUMNS = (
    "NODE",
    "RELAY",
    "REGION",
    "SANDBOXES",
    "WARM",
    "REMAINS",
    "DISK LIMIT",
    "CPU FREE",
    "MEMORY FREE",
    "GPUS FREE",
    "ID",
    "CORDON",
)


def print_nodes(nodes: Sequence[Mapping[str, Any]]) -> None:
    """A table of `nodes`, each as from `NodeInfo.to_dict()`."""
    rows = [
        (
            node["hostname"],
            node["address"],
            "/".join(filter(None, (node["region"], node.get("zone")))),
            str(node["sandboxes"]),
            str(node["warm"]),
            str(node["remains"]),
            f"by {node['disk_limit']}",
            f"{node['cpu_free']:g} of {node['cpu_total']:g}",
            f"{node['memory_free']} of {node['memory_total']} MiB",
            f"{node['gpus_free']} of {node['gpus']}" if node.get("gpus") else "",
            node["id"][:8],
            _cordon(node),
        )
        for node in nodes
    ]
    console.print_table(_COLUMNS, rows)
    for node in nodes:
        if still := node.get("mounts_still"):
            console.out().print(
                f"{node['hostname']}: {still} of {node['mounts']} mounted volumes and buckets do not answer; calls "
                "into them wait, for a minute at most",
                markup=False,
            )


def _cordon(node: Mapping[str, Any]) -> str:
    cordon = node.get("cordon")
    if cordon is None:
        return "" if node["alive"] else "does not answer"
    return f"{cordon['why']} ({cordon['by']}, {console.age(time.time() - cordon['at'])} ago)"
