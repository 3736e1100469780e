"""What each measure must reach."""

from __future__ import annotations

_AT_LEAST: dict[str, float] = {
    "exec_p50": 25,
    "exec_rate_1": 40,
    "exec_rate_8": 25,
    "create_cold": 0.8,
    "create_warm": 10,
    "create_pool": 20,
    "create_rate": 0.9,
    "file_write": 2,
    "file_read": 2,
    "http_exec_p50": 8,
    "http_exec_rate": 8,
    "http_create_warm": 6,
    "tunnel_get_rate": 0.7,
}
"""How many times better than docker-py, by measure.

A container's own address leads there straight through the kernel, so of GETs through a tunnel only those of a usual
server have a target.
"""

_AT_LEAST_DIRECTLY: dict[str, float] = {
    "create_cold": 4,
    "create_rate": 4.5,
    "destroy": 8,
    "destroy_gone": 3,
    "cycles": 4,
    "snapshot_fs": 5,
}
"""The same, where no daemon is on the way: with the engine `oci`."""

FIGURES_AT_LEAST: dict[str, float] = {
    "http_file_up": 150,
    "http_file_down": 150,
    "tunnel_down": 500,
    "map_efficiency": 0.9,
    "image_fetch": 0.7,
    "volume_write": 0.8,
    "volume_read": 0.8,
}
"""MB/s, where docker-py has nothing that streams a file; the share of what is reached by hand, by copying, or outside
the sandbox."""

FIGURES_AT_MOST: dict[str, float] = {
    "http_first_byte_ms": 20,
    "region_up_s": 20,
    "pool_burst": 2,
    "create_from_snapshot": 1.2,
    "live_200_exec_p95_ms": 100,
    "cycles_create_p95_s": 2,
    "volume_create_ms": 30,
    "volume_first_ms": 300,
    "volume_seen_s": 1,
}
"""In milliseconds and seconds, as their names say; of a burst in seconds; of a create from a snapshot as a multiple."""

PSS_AT_MOST = 60.0  # MB per idle sandbox


def at_least(engine: str) -> dict[str, float]:
    """How many times better than docker-py, by measure, with an engine of Shoal's."""
    return _AT_LEAST | (_AT_LEAST_DIRECTLY if engine == "oci" else {})
