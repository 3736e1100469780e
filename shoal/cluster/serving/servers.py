"""What the replicas' HTTP servers are given beside what Serve gives them."""

from __future__ import annotations

from typing import Any

from shoal.cluster.serving.websockets import OPTIONS


def server_options(host: str) -> dict[str, Any]:
    """Uvicorn's, on the node of that address: HAProxy comes from there, or from the loopback, and says whom it speaks for."""
    return {**OPTIONS, "forwarded_allow_ips": ["127.0.0.1", "::1", host]}
