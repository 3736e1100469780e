"""Facts of the machine that the figures were taken on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import docker


def facts(docker_address: str, kind: str) -> dict[str, Any]:
    """Cores, memory (MiB), kernel, engine (`kind`: the cluster's) and versions; nothing that names the machine."""
    client = docker.DockerClient(base_url=docker_address)
    try:
        engine = client.version()
        info = client.info()
    finally:
        client.close()
    meminfo = Path("/proc/meminfo").read_text("ascii")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": int(meminfo.split("MemTotal:")[1].split()[0]) // 1024,
        "load_before": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "ray": version("ray"),
        "engine": kind,
        "docker": engine["Version"],
        "storage_driver": info.get("Driver"),
        "cgroup_version": info.get("CgroupVersion"),
    }
