"""Builders with overrides for the values that most tests need."""

from __future__ import annotations

from typing import Any

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
