"""What every container gets and what it is kept from, said once: each engine carries it out in its own form. Pure."""

from __future__ import annotations

import re
from typing import Final

from shoal.actors.engines.contract import AGENT_PATH, RUN_MOUNT, ContainerSpec, Mount
from shoal.actors.engines.image_store import ImageInfo
from shoal.model import ids
from shoal.model.errors import InvalidRequest

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

OOM_SCORE: Final = 500
"""The kernel kills a sandbox before the node's own processes when the machine as a whole runs out of memory."""

MASKED_PATHS: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/diskstats",
    "/proc/fs",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/pagetypeinfo",
    "/proc/partitions",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/slabinfo",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/vmallocinfo",
    "/sys/devices/virtual/block",  # the path of each file behind a loop device, so of other sandboxes' disks
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/ext4",
)
"""Not to be read: they tell of the machine and of what else runs there, or how long other code takes. Among them is all
of `/proc` that the kernel shows to root alone, whom it takes root inside for."""

READ_ONLY_PATHS: Final = ("/proc/bus", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
"""The machine's settings that have no namespace."""

LEAST_PIDS: Final = 16
LEAST_MEMORY: Final = 6 * MiB
_SHM: Final = 64 * MiB
SECRETS_SIZE: Final = MiB
"""Bytes of each directory in memory. They count as memory."""
_HOSTNAME: Final = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?")


def check_key(key: str) -> None:
    """`InvalidRequest` for an invalid key, which becomes part of paths and URLs."""
    if not ids.CONTAINER.fullmatch(key):
        raise InvalidRequest(f"key: {key[:64]!r} is no container key", field="key")


def check(spec: ContainerSpec, *, runtimes: tuple[str, ...]) -> None:
    """Raises `InvalidRequest` for what an engine would refuse late or take for "no limit"."""
    check_key(spec.key)
    if spec.cpu < 0.01:
        raise InvalidRequest("cpu: a container can't be limited to less than 0.01 cores; ask for more", field="cpu")
    if spec.pids < LEAST_PIDS:
        raise InvalidRequest(f"pids: ask for at least {LEAST_PIDS}: the agent itself needs some", field="pids")
    for name in ("memory", "disk", "gpu"):
        if getattr(spec, name) < 0:
            raise InvalidRequest(f"{name}: must not be negative", field=name)
    if spec.runtime not in runtimes:
        raise InvalidRequest(f"runtime: this node has no {spec.runtime!r}, only {', '.join(runtimes)}", field="runtime")
    if not _HOSTNAME.fullmatch(spec.hostname):
        raise InvalidRequest("hostname: use at most 63 letters, digits and dashes", field="hostname")


def environment(spec: ContainerSpec, image: ImageInfo) -> dict[str, str]:
    """What the agent gets beside the image's own variables, and in their place."""
    defaults = {name: value for name, value in spec.default_env.items() if name not in image.config.env}
    return {**defaults, **spec.env, "SHOAL_USER": image.config.user, "SHOAL_WORKDIR": image.config.workdir}


def mounts(spec: ContainerSpec) -> tuple[Mount, ...]:
    """All that a container mounts of the node, later ones over earlier."""
    return (Mount(spec.agent, AGENT_PATH), Mount(spec.run_dir, RUN_MOUNT), *spec.mounts)


def sysctls(*, has_ipv6: bool) -> dict[str, str]:
    """Settings of its network namespace: the loopback has `::1`, which `localhost` resolves to as well, and no
    interface that it gets later has IPv6. In any order: a runtime applies them in none."""
    if not has_ipv6:
        return {}
    return {"net.ipv6.conf.lo.disable_ipv6": "0", "net.ipv6.conf.default.disable_ipv6": "1"}


def shm_size(memory: int) -> int:
    """Bytes for `/dev/shm`. They count as memory; the half is what the kernel itself gives a tmpfs."""
    return max(_SHM, memory // 2)


def hosts_file(hostname: str) -> str:
    """`/etc/hosts`: its own name resolves even without a network."""
    return f"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.0.1\t{hostname}\n"
