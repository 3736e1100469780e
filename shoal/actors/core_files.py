"""Core files: what a process knows, such as the values of secrets, stays out of them."""

from __future__ import annotations

import resource

_LIMIT = 1
"""Bytes. With none, the kernel still passes the memory to a program that the machine's core_pattern names (core(5))."""


def leave_no_core_file() -> None:
    """Of this process, and of those that it starts. The hard limit stays, so that a sandbox may set its own."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    most = _LIMIT if hard == resource.RLIM_INFINITY else min(_LIMIT, hard)
    resource.setrlimit(resource.RLIMIT_CORE, (most, hard))
