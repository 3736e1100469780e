"""Builders with overrides for the values that most tests need."""

from __future__ import annotations

from typing import Any

from shoal.model.info import NodeInfo
from shoal.model.spec import Resources, SandboxSpec


def resources(**changes: Any) -> Resources:
    values: dict[str, Any] = {
        "cpu_request": 0.125,
        "cpu_limit": 1.0,
        "memory_request": 128,
        "memory_limit": 1024,
        "disk": 1024,
        "pids": 128,
    }
    return Resources(**{**values, **changes})


def spec(**changes: Any) -> SandboxSpec:
    values: dict[str, Any] = {"image": "shoal/base", "resources": resources()}
    return SandboxSpec(**{**values, **changes})


def node_info(node_id: str = "1" * 56, **changes: Any) -> NodeInfo:
    values: dict[str, Any] = {
        "address": "127.0.0.1:1",
        "hostname": "host",
        "region": None,
        "engine": "fake",
        "runtimes": ("runc",),
        "alive": True,
        "sandboxes": 0,
        "warm": 0,
        "cpu_total": 8.0,
        "cpu_free": 8.0,
        "memory_total": 8192,
        "memory_free": 8192,
        "pids": 24576,
        "disk_total": 1 << 20,
    }
    return NodeInfo(node_id, **{**values, **changes})
