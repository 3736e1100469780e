"""Turns a `ContainerSpec` into the daemon's request. Pure, so that the whole safety of a container is one readable
table."""

from __future__ import annotations

import re
from typing import Any, Final

from shoal.actors.engines.contract import AGENT_PATH, RUN_MOUNT, ContainerSpec
from shoal.actors.engines.image_store import ImageInfo
from shoal.model import ids
from shoal.model.errors import InvalidRequest

KEY_LABEL: Final = "shoal.key"
KEEP_LABEL: Final = "shoal.keep"
"""Set if the container is kept when it is stopped, and when its cluster is."""
DISK_LABEL: Final = "shoal.disk"
"""Where the disk of such a container is mounted while it runs, if it has one of its own."""
MiB: Final = 1 << 20

# What programs that expect to be root in a container need. Left out of Docker's default set:
# MKNOD, NET_RAW (forged packets, ARP), SYS_CHROOT, SETPCAP, SETFCAP and AUDIT_WRITE.
CAPABILITIES: Final = (
    "CHOWN",  # package managers give files their owners
    "DAC_OVERRIDE",  # root writes into what a user owns (`pip install` into a user's tree, apt's caches)
    "FOWNER",  # … and sets modes and times there (tar, dpkg)
    "FSETID",  # … keeping set-id bits
    "KILL",  # root ends processes of other users; the agent ends whole trees
    "SETUID",  # the agent starts processes as the sandbox's user; apt drops to `_apt`
    "SETGID",  # the same, for groups
    "NET_BIND_SERVICE",  # servers on port 80; it is their own network namespace
)

# The kernel kills a sandbox before the node's own processes when the machine as a whole runs out of memory.
_OOM_SCORE = 500
_PIDS = 16
_SHM = 64 * MiB

# The loopback has `::1`, which `localhost` resolves to as well; the engine turns IPv6 off on every interface.
_LOOPBACK: Final = {"net.ipv6.conf.lo.disable_ipv6": "0"}


def container_name(key: str) -> str:
    """The daemon's name for the container `key`. `InvalidRequest` for an invalid key, as it becomes part of a URL."""
    if not ids.CONTAINER.fullmatch(key):
        raise InvalidRequest(f"key: {key[:64]!r} is no container key", field="key")
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
        "Env": [f"{name}={value}" for name, value in _environment(spec, image).items()],
        "Labels": {**spec.labels, KEY_LABEL: spec.key, **({KEEP_LABEL: "yes"} if spec.keep else {})},
        "Hostname": spec.hostname,
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGKILL",  # the agent obeys none that code inside could send as well
        "HostConfig": {
            **_isolation(spec, seccomp),
            "Sysctls": _LOOPBACK if has_ipv6 else {},
            **_limits(spec),
            "Mounts": _mounts(spec),
        },
    }


def hosts_file(hostname: str) -> str:
    """What `/etc/hosts` is for a container that has the file from us."""
    return f"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.0.1\t{hostname}\n"


def check(spec: ContainerSpec, *, runtimes: tuple[str, ...]) -> None:
    """Raises `InvalidRequest` for what the daemon would refuse late or take for "no limit"."""
    container_name(spec.key)
    if spec.cpu < 0.01:
        raise InvalidRequest("cpu: a container can't be limited to less than 0.01 cores; ask for more", field="cpu")
    if spec.pids < _PIDS:
        raise InvalidRequest(f"pids: ask for at least {_PIDS}: the agent itself needs some", field="pids")
    for name in ("memory", "disk", "gpu"):
        if getattr(spec, name) < 0:
            raise InvalidRequest(f"{name}: must not be negative", field=name)
    if spec.runtime not in runtimes:
        raise InvalidRequest(f"runtime: this node has no {spec.runtime!r}, only {', '.join(runtimes)}", field="runtime")
    if len(spec.hostname) > 63 or not re.fullmatch(r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?", spec.hostname):
        raise InvalidRequest("hostname: use at most 63 letters, digits and dashes", field="hostname")


def _environment(spec: ContainerSpec, image: ImageInfo) -> dict[str, str]:
    """What the daemon adds to the image's own, and puts in its place."""
    defaults = {name: value for name, value in spec.default_env.items() if name not in image.config.env}
    return {**defaults, **spec.env, "SHOAL_USER": image.config.user, "SHOAL_WORKDIR": image.config.workdir}


def _isolation(spec: ContainerSpec, seccomp: str) -> dict[str, Any]:
    return {
        "NetworkMode": "none",
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "CapDrop": ["ALL"],
        "CapAdd": list(CAPABILITIES),
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
        "OomScoreAdj": _OOM_SCORE,
        # Shared memory counts as memory; the half is what the kernel itself gives a tmpfs.
        "ShmSize": max(_SHM, spec.memory // 2),
    }
    if spec.memory:
        # The same number for both means: no swap.
        limits |= {"Memory": spec.memory, "MemorySwap": spec.memory}
    if spec.gpu:
        limits["DeviceRequests"] = [{"Driver": "", "Count": spec.gpu, "Capabilities": [["gpu"]]}]
    return limits


def _mounts(spec: ContainerSpec) -> list[dict[str, Any]]:
    """Mounts rather than "binds", which would create a missing source as an empty directory."""
    mounts = [(str(spec.agent), AGENT_PATH, True), (str(spec.run_dir), RUN_MOUNT, True)]
    mounts += [(str(mount.source), mount.target, mount.read_only) for mount in spec.mounts]
    return [
        {
            "Type": "bind",
            "Source": source,
            "Target": target,
            "ReadOnly": read_only,
            "BindOptions": {"Propagation": "rprivate"},
        }
        for source, target, read_only in mounts
    ]
