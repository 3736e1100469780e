"""What Ray's autoscaler asks for machines: the fleet, in the words of Ray's `NodeProvider`.

It runs in Ray's monitor process. Ray lists in each of its rounds, launches and terminates from threads of its own.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import NODE_KIND_HEAD, NODE_KIND_WORKER, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

from shoal.cluster.scaling.contract import Machine, MachineState, Order
from shoal.cluster.scaling.files import ScalingFiles
from shoal.cluster.scaling.fleet import Fleet
from shoal.cluster.scaling.providers import open_regions
from shoal.cluster.scaling.ray_config import HEAD_ID, HEAD_TYPE
from shoal.cluster.scaling.spec import ClusterSpec, types_of
from shoal.model.logs import write_logs

log = logging.getLogger("shoal.scaling")

_HEAD_TAGS = {TAG_RAY_NODE_KIND: NODE_KIND_HEAD, TAG_RAY_USER_NODE_TYPE: HEAD_TYPE}


class FleetProvider(NodeProvider):
    """`provider_config` has `state_dir` and, in Ray's monitor, `log_format`. `fleet`: in place of the one that the
    cluster's description gives."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str, fleet: Fleet | None = None) -> None:
        super().__init__(provider_config, cluster_name)
        state_dir = Path(provider_config["state_dir"])
        if "log_format" in provider_config and not logging.getLogger("shoal").handlers:  # once in a process
            write_logs(provider_config["log_format"], "scaler")
        self._files = ScalingFiles.below(state_dir)
        self._fleet = fleet or _open_fleet(self._files, state_dir)
        self._listed: Mapping[str, Machine] = {}
        self._untold: dict[str, Machine] = {}
        """Those that were launched since the last list."""

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """What was launched is listed once, even if it is gone by now: else Ray would go on to expect it, and fail in
        each of its rounds once the type may have no more machines (seen in 2.60)."""
        told = dict(self._untold)
        machines = {**told, **{machine.id: machine for machine in self._fleet.refresh() if _is_there(machine)}}
        for machine_id in told:
            del self._untold[machine_id]
        self._listed = machines
        return [
            machine_id
            for machine_id in (HEAD_ID, *machines)
            if tag_filters.items() <= self.node_tags(machine_id).items()
        ]

    def node_tags(self, node_id: str) -> dict[str, str]:
        machine = self._listed.get(node_id)
        if machine is None:
            return dict(_HEAD_TAGS) if node_id == HEAD_ID else {}
        return {**machine.tags, TAG_RAY_NODE_KIND: NODE_KIND_WORKER, TAG_RAY_USER_NODE_TYPE: machine.type}

    def is_running(self, node_id: str) -> bool:
        machine = self._listed.get(node_id)
        return node_id == HEAD_ID or (machine is not None and machine.state is MachineState.RUNNING)

    def is_terminated(self, node_id: str) -> bool:
        return node_id != HEAD_ID and node_id not in self._listed

    def internal_ip(self, node_id: str) -> str:
        machine = self._listed.get(node_id)
        return "" if machine is None else machine.address

    def external_ip(self, node_id: str) -> str:
        return self.internal_ip(node_id)

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Raises where not all were launched: Ray then asks anew for what is missing."""
        # A token of its own: Ray uses one request id for several batches.
        order = Order(tags[TAG_RAY_USER_NODE_TYPE], count, uuid.uuid4().hex, dict(tags))
        launched = self._fleet.launch(order)
        self._untold.update({machine.id: machine for machine in launched})
        if launched.error is not None:
            log.info("launched %d of %d %s: %s", len(launched), count, order.type, launched.error)
            raise launched.error
        return {machine.id: {} for machine in launched}

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        """Only node updaters need it, and there are none."""

    def terminate_node(self, node_id: str) -> dict[str, Any] | None:
        return self.terminate_nodes([node_id])

    def terminate_nodes(self, node_ids: list[str]) -> dict[str, Any] | None:
        self._fleet.terminate([node_id for node_id in node_ids if node_id != HEAD_ID])
        return None


def _is_there(machine: Machine) -> bool:
    # Ray has no configuration for a type that it does not know, and fails on it. It is told by `shoal cluster status`.
    return machine.state is not MachineState.TERMINATING and bool(machine.type)


def _open_fleet(files: ScalingFiles, state_dir: Path) -> Fleet:
    cluster: ClusterSpec | None = files.read_cluster()
    assert cluster is not None, "the monitor starts after the description was written"
    regions = open_regions(cluster, state_dir)
    log.info("regions: %s; types: %s", [region.name for region in regions], [name for name, _ in types_of(cluster)])
    return Fleet(regions, files.read_fleet(), files.write_fleet)
