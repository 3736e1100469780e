"""What a node's gateway and relay have counted, as series for the cluster's `/metrics`.

They count since they started: one that is started anew begins at zero, as Prometheus expects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from shoal.actors.node.program import Program
from shoal.model.errors import ShoalError
from shoal.model.metrics import Series

_SECONDS = "shoal_gateway_request_seconds"
_CODES = ("499", "1xx", "2xx", "3xx", "4xx", "5xx")
"""Classes of statuses as the gateway numbers them; of the first kind are clients that left before the answer."""

_OF_A_KIND = (
    ("open_requests", "gauge", "Requests and upgraded connections in progress", "open"),
    ("rejected", "counter", "Requests that the gateway refused itself", "rejected"),
)


async def program_series(gateway: Program, relay: Program) -> dict[Series, float]:
    """The series of both, as far as they run and answer."""
    found: dict[Series, float] = {}
    for program, series in ((gateway, gateway_series), (relay, relay_series)):
        if program.is_connected:
            try:
                found |= series(await program.ask({"op": "metrics"}))
            except ShoalError:
                pass  # it is being restarted, or of an older Shoal that has no such command
    return found


def gateway_series(told: Mapping[str, Any]) -> dict[Series, float]:
    """`told`: the gateway's answer to the command `metrics`."""
    found = dict(
        (
            _series("shoal_gateway_connections", "gauge", "Connections of clients", told["connections"]),
            _series("shoal_gateway_replicas", "gauge", "Replicas of the API that it knows", told["replicas"]),
        )
    )
    for kind in ("api", "tunnel"):
        found |= dict(_of_kind(kind, told[kind], told["bounds"]))
    return found


def relay_series(told: Mapping[str, Any]) -> dict[Series, float]:
    """`told`: the relay's answer to the command `metrics`."""
    return dict(
        (
            _series("shoal_relay_open_connections", "gauge", "Connections to sandboxes", told["open"]),
            _series("shoal_relay_connections", "counter", "Connections that it accepted", told["connections"]),
            _series("shoal_relay_rejected", "counter", "Connections that it let nowhere", told["rejected"]),
            _series("shoal_relay_containers", "gauge", "Containers that it serves", told["containers"]),
        )
    )


def _of_kind(kind: str, told: Mapping[str, Any], bounds: list[float]) -> Iterator[tuple[Series, float]]:
    for name, sort, about, member in _OF_A_KIND:
        yield _series(f"shoal_gateway_{name}", sort, about, told[member], kind=kind)
    for code, count in zip(_CODES, told["classes"], strict=True):
        yield _series("shoal_gateway_requests", "counter", "Requests, by status", count, kind=kind, code=code)
    for direction in ("received", "sent"):
        about = "Bytes of bodies and of upgraded connections"
        yield _series("shoal_gateway_bytes", "counter", about, told[direction], kind=kind, direction=direction)
    about, total = "Until the answer begins", 0
    for bound, count in zip([*(str(float(bound)) for bound in bounds), "+Inf"], told["buckets"], strict=True):
        total += count
        labels = (("kind", kind), ("le", bound))
        yield Series(_SECONDS, "histogram", about, f"{_SECONDS}_bucket", labels), float(total)
    yield Series(_SECONDS, "histogram", about, f"{_SECONDS}_count", (("kind", kind),)), float(total)
    yield Series(_SECONDS, "histogram", about, f"{_SECONDS}_sum", (("kind", kind),)), float(told["seconds"])


def _series(family: str, sort: str, about: str, value: float, **labels: str) -> tuple[Series, float]:
    name = f"{family}_total" if sort == "counter" else family
    return Series(family, sort, about, name, tuple(labels.items())), float(value)
