"""Turns a `ContainerSpec` into the daemon's request. Pure: what a container may is said in `isolation.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from shoal.actors.engines import isolation
from shoal.actors.engines.contract import AGENT_PATH, ContainerSpec
from shoal.actors.engines.image_store import ImageInfo

KEY_LABEL: Final = "shoal.key"
KEEP_LABEL: Final = "shoal.keep"
"""`KEPT` if the container is kept when it is stopped, and when its cluster is."""
KEPT: Final = "yes"
DISK_LABEL: Final = "shoal.disk"
"""Where the disk of such a container is mounted while it runs; empty if it has none of its own."""


def container_name(key: str) -> str:
    """The daemon's name for the container `key`. `InvalidRequest` for an invalid key, as it becomes part of a URL."""
    isolation.check_key(key)
    return f"shoal-{key}"


def create_request(spec: ContainerSpec, image: ImageInfo, *, seccomp: str, has_ipv6: bool = True) -> dict[str, Any]:
    """The body of the daemon's "create container" for `spec`. `seccomp`: the profile, as JSON; `has_ipv6`: whether this
    kernel knows IPv6."""
    return {
        # By digest: the name may have moved to another image since it was looked up.
        "Image": image.digest,
        "Entrypoint": [AGENT_PATH, "init"],
        "Cmd": [],
        # The agent is root, so that it can start processes as any user; it gets the image's user below.
        "User": "0:0",
        "WorkingDir": "/",
        "Env": [f"{name}={value}" for name, value in isolation.environment(spec, image).items()],
        "Labels": _labels(spec),
        "Hostname": spec.hostname,
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGKILL",  # the agent obeys none that code inside could send as well
        "HostConfig": {
            **_isolation(spec, seccomp),
            "Sysctls": isolation.sysctls(has_ipv6=has_ipv6),
            **_limits(spec),
            "Mounts": _mounts(spec),
        },
    }


def _labels(spec: ContainerSpec) -> dict[str, str]:
    """Each of Shoal's own is always there: the daemon adds the image's labels, which may have any names."""
    return {DISK_LABEL: "", **spec.labels, KEY_LABEL: spec.key, KEEP_LABEL: KEPT if spec.keep else ""}


def is_kept(labels: Mapping[str, str] | None) -> bool:
    """Whether the container with these labels outlives its stop and its cluster."""
    return (labels or {}).get(KEEP_LABEL) == KEPT


def _isolation(spec: ContainerSpec, seccomp: str) -> dict[str, Any]:
    return {
        "NetworkMode": "none",
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "CapDrop": ["ALL"],
        "CapAdd": list(isolation.CAPABILITIES),
        "MaskedPaths": list(isolation.MASKED_PATHS),
        "ReadonlyPaths": list(isolation.READ_ONLY_PATHS),
        "SecurityOpt": ["no-new-privileges", f"seccomp={seccomp}"],
        "Runtime": spec.runtime,
        "Init": False,
        "RestartPolicy": {"Name": "no"},
        # All output goes through the agent: the engine's own log would only grow.
        "LogConfig": {"Type": "none"},
        # Its own name resolves even without a network.
        "ExtraHosts": [f"{spec.hostname}:127.0.0.1"],
    }


def _limits(spec: ContainerSpec) -> dict[str, Any]:
    limits: dict[str, Any] = {
        "NanoCpus": round(spec.cpu * 1e9),
        "PidsLimit": spec.pids,
        "OomScoreAdj": isolation.OOM_SCORE,
        "ShmSize": isolation.shm_size(spec.memory),
    }
    if spec.memory:
        # The same number for both means: no swap.
        limits |= {"Memory": spec.memory, "MemorySwap": spec.memory}
    if spec.gpu:
        limits["DeviceRequests"] = [{"Driver": "", "Count": spec.gpu, "Capabilities": [["gpu"]]}]
    return limits


def _mounts(spec: ContainerSpec) -> list[dict[str, Any]]:
    """Mounts rather than "binds", which would create a missing source as an empty directory."""
    return [
        {
            "Type": "bind",
            "Source": str(mount.source),
            "Target": mount.target,
            "ReadOnly": mount.read_only,
            "BindOptions": {"Propagation": "rprivate"},
        }
        for mount in isolation.mounts(spec)
    ] + [
        # The daemon adds nosuid, nodev and noexec.
        {
            "Type": "tmpfs",
            "Target": directory,
            "TmpfsOptions": {"SizeBytes": isolation.SECRETS_SIZE, "Mode": 0o700},
        }
        for directory in spec.memory_directories
    ]
