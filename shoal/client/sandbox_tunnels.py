"""The ports of a sandbox: tunnels to them, and local ports that are forwarded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from shoal.client.dual_method import dual_method
from shoal.client.html import Listed
from shoal.client.retrying_agent import RetryingAgent
from shoal.client.tunnels import Forward, check_port
from shoal.model import verbs
from shoal.model.access import Tunnel
from shoal.model.info import SandboxInfo
from shoal.model.validate import check_number


class SandboxTunnels:
    """The part of a `Sandbox` that is about ports."""

    _agent: RetryingAgent
    _info: SandboxInfo

    @dual_method
    async def expose(self, port: int, *, protocol: Literal["http", "tcp"] = "http", public: bool = False) -> Tunnel:
        """Opens a tunnel to a port: a URL (`http`, with WebSockets) or an address (`tcp`). It needs no network.

        A private tunnel has a connect token. `tunnel.link` is its URL for a browser; programs send the header
        `X-Shoal-Connect-Token`, or over `tcp` the token and a newline first. A `public` tunnel is open to everybody.
        Repeated calls return the same tunnel with a fresh token, changed if the arguments differ. Raises
        `FailedPrecondition` before the sandbox runs, `SandboxEnded`.
        """
        check_port(port)
        return await self._agent.transport.ask(verbs.expose, self._info.id, port, protocol, public)

    @dual_method
    async def unexpose(self, port: int) -> None:
        """Closes the tunnel to a port. Does nothing if the port has none."""
        check_port(port)
        await self._agent.transport.ask(verbs.unexpose, self._info.id, port)

    @dual_method
    async def tunnels(self) -> Sequence[Tunnel]:
        """Its tunnels by port, without tokens."""
        found = await self._agent.transport.ask(verbs.tunnels, self._info.id)
        return Listed(found, "port protocol public url address")

    @dual_method
    async def connect_token(self, port: int, expires_in: float = 3600) -> Tunnel:
        """The tunnel with a new connect token, valid for `expires_in` seconds (at most 7 days); `TunnelNotFound`."""
        check_port(port)
        check_number("expires_in", expires_in, 0, math.inf, "seconds")
        return await self._agent.transport.ask(verbs.tunnel_token, self._info.id, port, expires_in)

    @dual_method
    async def forward(self, port: int, local_port: int = 0, host: str = "127.0.0.1") -> Forward:
        """Forwards a local port to a port in the sandbox, exposed or not, until it is closed; a context manager.

        `local_port` 0: any free port; `Forward.address` is the result. Whoever can reach `host` can reach the port. The
        sandbox needs no network.
        """
        forward = Forward(self._agent, port, host, local_port)
        await forward.start.aio()
        return forward
