"""Tunnels to the ports of sandboxes."""
# mypy: disable-error-code="empty-body"

from __future__ import annotations

from shoal.model.access import Scope, Tunnel
from shoal.model.verbs.verb import verb


@verb(Scope.RUN, "POST /v1/sandboxes/{sandbox_id}/tunnels", audit="tunnel.expose")
def expose(sandbox_id: str, port: int, protocol: str, public: bool) -> Tunnel:
    """Opens a tunnel to a port; `protocol` is `http` or `tcp`. Again with the same arguments: the same tunnel, with a
    fresh token where it is private; with others: it is changed. `SandboxEnded`, `FailedPrecondition` before it runs,
    `QuotaExceeded`."""


@verb(Scope.RUN, "DELETE /v1/sandboxes/{sandbox_id}/tunnels/{port}", audit="tunnel.unexpose")
def unexpose(sandbox_id: str, port: int) -> None:
    """Closes a tunnel. If the port has none, nothing happens."""


@verb(Scope.READ, "GET /v1/sandboxes/{sandbox_id}/tunnels", many="tunnels")
def tunnels(sandbox_id: str) -> list[Tunnel]:
    """Its tunnels by port, without tokens; for one that has ended: none."""


@verb(Scope.RUN, "POST /v1/sandboxes/{sandbox_id}/tunnels/{port}/token", audit="tunnel.token")
def tunnel_token(sandbox_id: str, port: int, expires_in: float) -> Tunnel:
    """The tunnel with a connect token that lasts `expires_in` seconds (7 days at most); `TunnelNotFound`."""
