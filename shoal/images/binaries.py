"""Finds the agent's binary for this machine."""

from __future__ import annotations

import platform
from pathlib import Path

from shoal.model.errors import FailedPrecondition

_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


def agent_binary() -> Path:
    """The package's binary for this machine; `FailedPrecondition` if there is none."""
    machine = platform.machine().lower()
    architecture = _ARCHITECTURES.get(machine)
    if architecture is None:
        raise FailedPrecondition(
            f"there is no agent for {machine!r}, only for {', '.join(sorted(set(_ARCHITECTURES.values())))}"
        )
    binary = Path(__file__).parent / "bin" / f"shoal-agent-{architecture}"
    if not binary.is_file():
        raise FailedPrecondition(
            "the agent's binary is missing; build it with `python hatch_build.py` or install Shoal again"
        )
    return binary
