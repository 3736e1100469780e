"""What the engine is told of a container: the spec that follows from its record and from the node's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shoal.actors.engines.contract import ContainerSpec, Mount, shows_processes
from shoal.actors.node.mount_sources import MountSources
from shoal.actors.node.records import ContainerRecord
from shoal.actors.node.size_files import SizeFiles
from shoal.model.spec import MIB, ContainerShape

DEADLINE = "SHOAL_DEADLINE_S"
"""The variable that tells an agent after how many seconds it ends in any case."""


@dataclass(frozen=True, slots=True)
class ContainerDefaults:
    """The settings that every container of a node shares. `secret`: the cluster's."""

    agent: Path
    sources: MountSources
    sizes: SizeFiles
    secret: bytes
    labels: Mapping[str, str]
    env: Mapping[str, str]
    mounts: tuple[Mount, ...]
    resolv_conf: Path
    empty_resolv_conf: Path


def size_mounts(defaults: ContainerDefaults, shape: ContainerShape) -> tuple[Mount, ...]:
    """The files that show a container of that shape its own size; writes those that are missing."""
    # A runtime with a kernel of its own tells its containers their size by itself.
    return defaults.sizes.mounts(shape.cpu, shape.memory) if shows_processes(shape.runtime) else ()


def container_spec(
    defaults: ContainerDefaults,
    record: ContainerRecord,
    run_dir: Path,
    disk_dir: Path,
    namespace: Path | None,
    sizes: tuple[Mount, ...],
) -> ContainerSpec:
    """What the engine is to start for a record. `disk_dir`: where a disk of its own is mounted; `namespace`: the
    network namespace that it starts in, if one is made before."""
    shape = record.shape
    resolv_conf = defaults.resolv_conf if shape.network == "default" else defaults.empty_resolv_conf
    return ContainerSpec(
        key=record.key,
        image=shape.image,
        agent=defaults.agent,
        run_dir=run_dir,
        cpu=shape.cpu,
        memory=shape.memory * MIB,
        pids=shape.pids,
        disk=shape.disk * MIB,
        disk_dir=disk_dir,
        gpu=shape.gpu,
        runtime=shape.runtime,
        hostname=shape.hostname,
        # What outlives many starts has no last hour.
        env={n: v for n, v in defaults.env.items() if n != DEADLINE} if shape.persistent else defaults.env,
        default_env=defaults.sizes.variables(shape.cpu),
        labels=defaults.labels,
        mounts=(*defaults.mounts, *sizes, Mount(resolv_conf, "/etc/resolv.conf")),
        keep=shape.persistent,
        memory_directories=shape.memory_directories,
        namespace=namespace,
    )
