"""Turns a `ContainerSpec` into an OCI runtime's `config.json`. Pure: what a container may is said in
`isolation.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shoal.actors.engines import isolation
from shoal.actors.engines.contract import AGENT_PATH, ContainerSpec, Mount, shows_processes
from shoal.actors.engines.image_store import ImageInfo
from shoal.actors.engines.shared_counts import MOST_TERMINALS

_VERSION: Final = "1.0.2"
_PERIOD_US: Final = 100_000
_LEAST_QUOTA_US: Final = 1_000
"""What the kernel takes at least."""
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_RLIMITS: Final = {"sigpending": "RLIMIT_SIGPENDING", "msgqueue": "RLIMIT_MSGQUEUE"}

_GVISOR_TASKS, _GVISOR_TASKS_EACH = 128, 2
"""What gVisor needs for itself, and for each process in it: 29 and 2 were seen."""
_FILTER_VARIABLE: Final = "SHOAL_SECCOMP"
FILTER_PATH: Final = "/.shoal/filter"

_NOTHING_RUNS: Final = ("nosuid", "noexec", "nodev")


@dataclass(frozen=True, slots=True)
class ContainerPaths:
    """What a container is started on. `root`: its root filesystem, mounted; `cgroup`: its group's path below each
    hierarchy's top; `filter`: the file with the filter that the agent applies (`filters.py`), None if the runtime
    compiles the profile."""

    root: Path
    cgroup: str
    filter: Path | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """What is the same for all containers of a machine. `seccomp`: the profile; `limits`: by the names of
    `shared_counts`."""

    seccomp: Mapping[str, Any]
    limits: Mapping[str, int]
    has_ipv6: bool = True


def config(spec: ContainerSpec, image: ImageInfo, paths: ContainerPaths, machine: Machine) -> dict[str, Any]:
    """The whole of `config.json`."""
    return {
        "ociVersion": _VERSION,
        "process": _process(spec, image, paths, machine),
        "root": {"path": str(paths.root), "readonly": False},
        "hostname": spec.hostname,
        "mounts": [
            *_kernel_mounts(spec),
            *map(_bind, (*isolation.mounts(spec), *_filter(paths))),
            *map(_memory, spec.memory_directories),
        ],
        "linux": {
            "namespaces": _namespaces(spec),
            "cgroupsPath": paths.cgroup,
            "resources": _resources(spec),
            "sysctl": isolation.sysctls(has_ipv6=machine.has_ipv6),
            **({"seccomp": dict(machine.seccomp)} if paths.filter is None else {}),
            "maskedPaths": list(isolation.MASKED_PATHS),
            "readonlyPaths": list(isolation.READ_ONLY_PATHS),
        },
    }


def _process(spec: ContainerSpec, image: ImageInfo, paths: ContainerPaths, machine: Machine) -> dict[str, Any]:
    environ = {"PATH": _PATH, "HOSTNAME": spec.hostname, **image.config.env, **isolation.environment(spec, image)}
    environ[_FILTER_VARIABLE] = FILTER_PATH if paths.filter is not None else ""
    capabilities = [f"CAP_{name}" for name in isolation.CAPABILITIES]
    return {
        "terminal": False,
        # The agent is root, so that it can start processes as any user; it gets the image's user in its environment.
        "user": {"uid": 0, "gid": 0},
        "args": [AGENT_PATH, "init"],
        "env": [f"{name}={value}" for name, value in environ.items()],
        "cwd": "/",
        # None is inheritable or ambient: a program of another user gets none.
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
        "noNewPrivileges": True,
        "oomScoreAdj": isolation.OOM_SCORE,
        "rlimits": [{"type": name, "soft": most, "hard": most} for name, most in _limits(spec, machine).items()],
    }


def _limits(spec: ContainerSpec, machine: Machine) -> dict[str, int]:
    limits = {_RLIMITS[name]: most for name, most in machine.limits.items()}
    # Held by gVisor's own kernel, for each user inside: its processes are none of the machine's.
    return limits if shows_processes(spec.runtime) else {**limits, "RLIMIT_NPROC": spec.pids}


def _most_tasks(spec: ContainerSpec) -> int:
    """What the machine's kernel counts. gVisor ends where it gets no more, so this is beyond what `_limits` allows."""
    return spec.pids if shows_processes(spec.runtime) else _GVISOR_TASKS + _GVISOR_TASKS_EACH * spec.pids


def _filter(paths: ContainerPaths) -> tuple[Mount, ...]:
    return (Mount(paths.filter, FILTER_PATH),) if paths.filter is not None else ()


def _namespaces(spec: ContainerSpec) -> list[dict[str, str]]:
    kinds = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "cgroup")]
    return [*kinds, {"type": "network", **({"path": str(spec.namespace)} if spec.namespace is not None else {})}]


def _kernel_mounts(spec: ContainerSpec) -> list[dict[str, Any]]:
    terminals = ("newinstance", "ptmxmode=0666", "mode=0620", "gid=5", f"max={MOST_TERMINALS}")
    return [
        _mount("proc", "/proc", *_NOTHING_RUNS),
        _mount("tmpfs", "/dev", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount("devpts", "/dev/pts", "nosuid", "noexec", *terminals),
        _mount("tmpfs", "/dev/shm", *_NOTHING_RUNS, "mode=1777", f"size={isolation.shm_size(spec.memory)}"),
        _mount("mqueue", "/dev/mqueue", *_NOTHING_RUNS),
        _mount("sysfs", "/sys", *_NOTHING_RUNS, "ro"),
        _mount("cgroup", "/sys/fs/cgroup", *_NOTHING_RUNS, "relatime", "ro"),
    ]


def _mount(kind: str, target: str, *options: str) -> dict[str, Any]:
    return {"type": kind, "source": kind, "destination": target, "options": list(options)}


def _memory(directory: str) -> dict[str, Any]:
    return _mount("tmpfs", directory, *_NOTHING_RUNS, "mode=700", f"size={isolation.SECRETS_SIZE}")


def _bind(mount: Mount) -> dict[str, Any]:
    options = ["rbind", "rprivate", "ro" if mount.read_only else "rw"]
    return {"type": "bind", "source": str(mount.source), "destination": mount.target, "options": options}


def _resources(spec: ContainerSpec) -> dict[str, Any]:
    resources: dict[str, Any] = {
        # All but the harmless ones, such as `/dev/null`, which a runtime adds by itself.
        "devices": [{"allow": False, "access": "rwm"}],
        "cpu": {"quota": max(_LEAST_QUOTA_US, round(spec.cpu * _PERIOD_US)), "period": _PERIOD_US},
        "pids": {"limit": _most_tasks(spec)},
    }
    if spec.memory:
        # The same number for both means: no swap.
        resources["memory"] = {"limit": spec.memory, "swap": spec.memory}
    return resources
