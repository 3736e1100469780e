"""Removes what a cluster left on this machine: containers, network, mounts, sockets. The cluster need not be alive.
The containers of persistent sandboxes are stopped, and stay with their disks.

Everything is found by its own marks (labels, an alias, a path), not by a list that somebody had to keep.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from shoal.actors.engines import cgroup_parent
from shoal.actors.names import CLUSTER_LABEL, NODE_LABEL, network_owner
from shoal.actors.network import SandboxNetwork
from shoal.cluster.local import processes
from shoal.cluster.local.engines import LocalEngine
from shoal.cluster.local.mounts import unmount_below
from shoal.model import programs
from shoal.model.errors import ShoalError, Unavailable
from shoal.model.settings import NetworkSettings


def network(settings: NetworkSettings, owner: str) -> None:
    """Removes the bridge with its interfaces, and the packet rules, unless another owns the bridge."""
    found = bridge_owner(settings.bridge)  # None: no bridge, though there may be rules
    if found in (None, "", owner) and programs.find("nft") and programs.find("ip"):
        asyncio.run(SandboxNetwork(settings, owner).close())


def bridge_owner(bridge: str) -> str | None:
    """Whose the bridge is (`names.network_owner`); "": nobody's; None: there is none."""
    try:
        return Path("/sys/class/net", bridge, "ifalias").read_text().strip().removeprefix("shoal ")
    except OSError:
        return None


def relays(run_dir: Path) -> None:
    """Relays and gateways whose node actor is gone; each listens at a unix socket below `run_dir`."""
    processes.stop(processes.listening_below(run_dir), grace_s=2.0)


def everything(
    engine: LocalEngine | None,
    cluster: str,
    run_dir: Path,
    settings: NetworkSettings,
    machine: str | None = None,
    *,
    keep: bool = True,
) -> list[ShoalError]:
    """All of the above and the cluster's containers, even if some of it fails; returns the errors. `engine` None: none
    answers; `machine`: what one that has joined calls itself, None for the head, which removes those of all; `keep`:
    persistent sandboxes are stopped and kept."""
    errors: list[ShoalError] = []
    cluster_dir = run_dir / cluster
    relays(cluster_dir)
    if engine is not None:
        labels = {CLUSTER_LABEL: cluster, **({NODE_LABEL: machine} if machine is not None else {})}
        try:
            engine.sweep(labels, keep=keep)
        except ShoalError as error:
            errors.append(error)
    try:
        network(settings, network_owner(cluster, machine))
    except ShoalError as error:
        errors.append(error)
    cgroup_parent.remove()
    if unmount_below(cluster_dir):
        shutil.rmtree(cluster_dir, ignore_errors=True)
    else:
        errors.append(Unavailable(f"{cluster_dir} stays: something is still mounted there; see /proc/self/mounts"))
    return errors
