"""Taking away what a cluster left on this machine: containers, network, mounts, sockets. Needs nothing of the cluster to be alive.

Everything is found by what it is (labels, an alias, a path), never by a list that somebody had to keep.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import docker
import requests

from shoal.actors.names import CLUSTER_LABEL
from shoal.actors.network import SandboxNetwork
from shoal.cluster.local import packages, processes
from shoal.model.errors import FailedPrecondition, ShoalError
from shoal.model.settings import NetworkSettings

_REMOVE_S = 60.0


def containers(address: str, cluster: str | None) -> int:
    """Removes the cluster's containers from the engine at `address` (None: every container, of an engine that is ours alone); how many."""
    client = docker.DockerClient(base_url=address, timeout=_REMOVE_S, version="auto")
    filters = {"label": f"{CLUSTER_LABEL}={cluster}"} if cluster is not None else {}
    removed = 0
    try:
        for container in client.api.containers(all=True, filters=filters):
            removed += _remove(client, container["Id"])
        left = client.api.containers(all=True, filters=filters)
    finally:
        client.close()
    if left:
        raise FailedPrecondition(
            f"the engine at {address} does not remove {len(left)} containers; restart it, then `shoal down` again"
        )
    return removed


def _remove(client: Any, identifier: str) -> bool:
    deadline = time.monotonic() + _REMOVE_S
    while True:
        try:
            client.api.remove_container(identifier, force=True, v=True)
        except docker.errors.NotFound:
            return False
        except (docker.errors.APIError, requests.RequestException):
            # Being removed by somebody else, or busy: the next try finds it gone.
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        else:
            return True


def network(settings: NetworkSettings, cluster: str) -> None:
    """The bridge with all its interfaces, and the packet rules; not those of another cluster that has taken the same name."""
    alias = Path("/sys/class/net", settings.bridge, "ifalias")
    try:
        owner = alias.read_text().strip()
    except OSError:
        owner = None  # no bridge; rules there may be
    if owner in (None, "", f"shoal {cluster}") and packages.find("nft") and packages.find("ip"):
        asyncio.run(SandboxNetwork(settings, cluster).close())


def mounts(directory: Path) -> None:
    """Whatever is mounted at or below `directory`, the deepest first."""
    prefix = f"{directory}/"
    # The kernel writes blanks and their like as octal escapes.
    lines = Path("/proc/self/mounts").read_text().splitlines()
    points = [line.split()[1].encode().decode("unicode_escape") for line in lines]
    for point in sorted((p for p in points if f"{p}/".startswith(prefix)), key=len, reverse=True):
        subprocess.run([packages.find("umount") or "umount", "-l", point], capture_output=True, check=False)


def relays(run_dir: Path) -> None:
    """Relay processes whose node actor is gone; each holds a listener below `run_dir`, named in `/proc/net/unix`."""
    inodes = _listening_inodes(run_dir)
    if inodes:
        processes.stop(processes.holding(inodes), grace_s=2.0)


def _listening_inodes(directory: Path) -> set[str]:
    found = set()
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[7].startswith(f"{directory}/"):
            found.add(fields[6])
    return found


def everything(address: str | None, cluster: str, run_dir: Path, settings: NetworkSettings) -> list[ShoalError]:
    """All of the above, each whatever became of the others; the errors that there were. `address` None: no engine answers."""
    errors: list[ShoalError] = []
    cluster_dir = run_dir / cluster
    relays(cluster_dir)
    if address is not None:
        try:
            containers(address, cluster)
        except ShoalError as error:
            errors.append(error)
        except (docker.errors.DockerException, requests.RequestException) as error:
            errors.append(
                FailedPrecondition(
                    f"the engine at {address} does not answer: {error}; start it, then `shoal down` again"
                )
            )
    try:
        network(settings, cluster)
    except ShoalError as error:
        errors.append(error)
    mounts(cluster_dir)
    shutil.rmtree(cluster_dir, ignore_errors=True)
    return errors
