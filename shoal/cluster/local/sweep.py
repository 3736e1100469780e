"""Removes what a cluster left on this machine: containers, network, mounts, sockets. The cluster need not be alive.
The containers of persistent sandboxes are stopped, and stay with their disks.

Everything is found by its own marks (labels, an alias, a path), not by a list that somebody had to keep.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
import requests
from tenacity import (
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_fixed,
)

from shoal.actors.engines import cgroup_parent
from shoal.actors.engines.docker.removal import remove_container, stop_container
from shoal.actors.engines.docker.request import KEEP_LABEL, KEY_LABEL
from shoal.actors.names import CLUSTER_LABEL, NODE_LABEL, network_owner
from shoal.actors.network import SandboxNetwork
from shoal.cluster.local import packages, processes
from shoal.model.errors import FailedPrecondition, ShoalError, Unavailable
from shoal.model.settings import NetworkSettings

_REMOVE_S = 60.0


def containers(address: str, cluster: str | None, machine: str | None = None, *, keep: bool = True) -> None:
    """Removes the cluster's containers from the engine at `address`. `cluster` None: all containers; `machine`: only
    those of the machine that calls itself so; `keep`: those of persistent sandboxes are stopped instead."""
    client = docker.DockerClient(base_url=address, timeout=_REMOVE_S, version="auto")
    wanted = {CLUSTER_LABEL: cluster, NODE_LABEL: machine}
    filters = {"label": [f"{label}={value}" for label, value in wanted.items() if value is not None]}
    try:
        for container in client.api.containers(all=True, filters=filters):
            labels = container["Labels"] or {}
            if keep and KEEP_LABEL in labels:
                _insist(stop_container, client.api, container["Id"], labels[KEY_LABEL])
            else:
                _insist(remove_container, client.api, container["Id"], labels.get(KEY_LABEL))
        left = [each for each in client.api.containers(all=True, filters=filters) if not (keep and _rests(each))]
    finally:
        client.close()
    if left:
        raise FailedPrecondition(
            f"the engine at {address} does not remove {len(left)} containers; restart it, then `shoal down` again"
        )


def _insist(work: Callable[..., None], *arguments: Any) -> None:
    """Removes or stops one container, however often that fails within a minute. If it stays, the caller sees it."""
    with contextlib.suppress(docker.errors.APIError, requests.RequestException, OSError, Unavailable):
        Retrying(
            retry=retry_if_exception_type((docker.errors.APIError, requests.RequestException, Unavailable)),
            wait=wait_fixed(0.1),
            stop=stop_after_delay(_REMOVE_S),
            reraise=True,
        )(work, *arguments)


def _rests(container: dict[str, Any]) -> bool:
    return KEEP_LABEL in (container["Labels"] or {}) and container["State"] not in ("running", "paused", "restarting")


def network(settings: NetworkSettings, owner: str) -> None:
    """Removes the bridge with its interfaces, and the packet rules, unless another owns the bridge."""
    found = bridge_owner(settings.bridge)  # None: no bridge, though there may be rules
    if found in (None, "", owner) and packages.find("nft") and packages.find("ip"):
        asyncio.run(SandboxNetwork(settings, owner).close())


def bridge_owner(bridge: str) -> str | None:
    """Whose the bridge is (`names.network_owner`); "": nobody's; None: there is none."""
    try:
        return Path("/sys/class/net", bridge, "ifalias").read_text().strip().removeprefix("shoal ")
    except OSError:
        return None


def mounts(directory: Path) -> None:
    """Unmounts everything at or below `directory`, the deepest first."""
    prefix = f"{directory}/"
    # The kernel writes spaces and the like as octal escapes.
    lines = Path("/proc/self/mounts").read_text().splitlines()
    points = [line.split()[1].encode().decode("unicode_escape") for line in lines]
    for point in sorted((p for p in points if f"{p}/".startswith(prefix)), key=len, reverse=True):
        subprocess.run([packages.find("umount") or "umount", "-l", point], capture_output=True, check=False)


def relays(run_dir: Path) -> None:
    """Relays and gateways whose node actor is gone; each listens at a unix socket below `run_dir`."""
    processes.stop(processes.listening_below(run_dir), grace_s=2.0)


def everything(
    address: str | None,
    cluster: str,
    run_dir: Path,
    settings: NetworkSettings,
    machine: str | None = None,
    *,
    keep: bool = True,
) -> list[ShoalError]:
    """All of the above, even if some of it fails; returns the errors. `address` None: no engine answers; `machine`:
    what one that has joined calls itself, None for the head; `keep`: persistent sandboxes are stopped and kept."""
    errors: list[ShoalError] = []
    cluster_dir = run_dir / cluster
    relays(cluster_dir)
    if address is not None:
        try:
            containers(address, cluster, machine, keep=keep)
        except ShoalError as error:
            errors.append(error)
        except (docker.errors.DockerException, requests.RequestException) as error:
            errors.append(
                FailedPrecondition(
                    f"the engine at {address} does not answer: {error}; start it, then `shoal down` again"
                )
            )
    try:
        network(settings, network_owner(cluster, machine))
    except ShoalError as error:
        errors.append(error)
    cgroup_parent.remove()
    mounts(cluster_dir)
    shutil.rmtree(cluster_dir, ignore_errors=True)
    return errors
