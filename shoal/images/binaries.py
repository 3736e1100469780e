"""Finds the binaries of Shoal's Go programs for this machine."""

from __future__ import annotations

import platform
from pathlib import Path

from shoal.model.errors import FailedPrecondition

_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


def agent_binary() -> Path:
    """The agent; `FailedPrecondition` if there is none for this machine."""
    return _binary("shoal-agent")


def layers_binary() -> Path:
    """The program that handles images' layers; `FailedPrecondition` if there is none for this machine."""
    return _binary("shoal-layers")


def _binary(program: str) -> Path:
    machine = platform.machine().lower()
    architecture = _ARCHITECTURES.get(machine)
    if architecture is None:
        raise FailedPrecondition(
            f"there is no {program} for {machine!r}, only for {', '.join(sorted(set(_ARCHITECTURES.values())))}"
        )
    binary = Path(__file__).parent / "bin" / f"{program}-{architecture}"
    if not binary.is_file():
        raise FailedPrecondition(
            f"the binary of {program} is missing; build it with `python hatch_build.py` or install Shoal again"
        )
    return binary
