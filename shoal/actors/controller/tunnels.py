"""Tunnels: which ports of a sandbox can be reached from outside, and the tokens for private ones.

They are stored in the sandbox's row. An `http` tunnel is only that record, which the API reads; for a `tcp` one the
sandbox's node listens.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from shoal.actors.controller.endings import ended_error
from shoal.actors.controller.history import History
from shoal.actors.controller.nodes import Nodes
from shoal.actors.controller.record import Exposure, SandboxRecord
from shoal.actors.controller.record_writer import RecordWriter, audited
from shoal.actors.handles import call
from shoal.actors.messages import SandboxStarted
from shoal.model import grants, verbs
from shoal.model.access import Caller, Tunnel
from shoal.model.errors import FailedPrecondition, InvalidRequest, NotFound, QuotaExceeded, ShoalError, TunnelNotFound
from shoal.model.settings import ApiSettings
from shoal.model.tunnels import CONNECT_KEY, tunnel_url
from shoal.model.validate import check_number

MAX_TUNNELS = 64
"""Of one sandbox."""

TOKEN_S = 3600.0
LONGEST_TOKEN_S = 7 * 86400.0

_NODE_S = 20.0


class Tunnels:
    """`secret`: the cluster's; `api`: the settings from which URLs are made."""

    def __init__(
        self,
        history: History,
        writer: RecordWriter,
        nodes: Nodes,
        secret: bytes,
        api: ApiSettings,
        call: Callable[..., Awaitable[Any]] = call,
    ) -> None:
        self._history = history
        self._writer = writer
        self._nodes = nodes
        self._secret = secret
        self._api = api
        self._call = call
        # Locks of sandboxes whose tunnels are being changed: record and node must get the changes in the same order.
        self._changing: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self.secret = hmac.new(secret, b"connect tokens of http tunnels", hashlib.sha256).digest()

    def tell_secret(self) -> bytes:
        """What connect tokens of `http` tunnels are signed with: for the API's replicas, which have nothing else with
        it."""
        return self.secret

    async def expose(self, sandbox_id: str, port: int, protocol: str, public: bool, caller: Caller) -> Tunnel:
        """Opens or changes a tunnel. Idempotent; a private tunnel gets a fresh token each time."""
        record = await self._history.get(sandbox_id, caller)
        check_number("port", port, 0, 65535, "a port", whole=True)
        if protocol not in ("http", "tcp"):
            raise InvalidRequest(f"protocol: {protocol!r} is neither http nor tcp", field="protocol")
        async with self._change(record):
            started = _running(record)
            before = record.tunnels.get(port)
            wanted = Exposure(port, protocol, bool(public), None if before is None else before.address)
            if before is None and len(record.tunnels) >= MAX_TUNNELS:
                raise QuotaExceeded(
                    f"port: {record.id} has {MAX_TUNNELS} tunnels, which is the most; close some", field="port"
                )
            if wanted != before or (protocol == "tcp" and wanted.address is None):
                await self._open(record, started, before, wanted, caller)
            elif protocol == "tcp":
                await self._find(record, started, wanted)
            return self._described(record, record.tunnels[port], TOKEN_S)

    async def unexpose(self, sandbox_id: str, port: int, caller: Caller) -> None:
        """Closes a tunnel. Idempotent."""
        record = await self._history.get(sandbox_id, caller)
        check_number("port", port, 0, 65535, "a port", whole=True)
        async with self._change(record):
            await self._close(record, port, caller)

    async def _close(self, record: SandboxRecord, port: int, caller: Caller) -> None:
        kept = record.tunnels.get(port)
        if (kept is None or kept.protocol == "tcp") and record.started is not None and not record.ended:
            await self._close_on_node(record, record.started, port)  # also a port that it opened without a record
        if kept is None:
            return
        tunnels = {number: tunnel for number, tunnel in record.tunnels.items() if number != port}
        entry = audited(verbs.unexpose, caller, target=f"{record.id}:{port}", environment=record.spec.environment)
        await self._put(record, tunnels, ("unexposed", {"port": port, "token": caller.token}), entry)

    async def tunnels(self, sandbox_id: str, caller: Caller) -> list[Tunnel]:
        """The sandbox's tunnels by port, without tokens; none if it has ended."""
        record = await self._history.get(sandbox_id, caller)
        if record.ended:
            return []
        return [self._described(record, record.tunnels[port], None) for port in sorted(record.tunnels)]

    async def token(self, sandbox_id: str, port: int, expires_in: float, caller: Caller) -> Tunnel:
        """The tunnel with a connect token."""
        record = await self._history.get(sandbox_id, caller)
        check_number("expires_in", expires_in, 0, LONGEST_TOKEN_S, "seconds")
        if _kept(record, port).protocol == "tcp":
            async with self._change(record):
                kept = _kept(record, port)  # it may have changed meanwhile
                if kept.protocol == "tcp":
                    await self._find(record, _running(record), kept)
        return self._described(record, _kept(record, port), expires_in)

    async def _open(
        self, record: SandboxRecord, started: SandboxStarted, before: Exposure | None, wanted: Exposure, caller: Caller
    ) -> None:
        """Records the tunnel first, without its address: a half-opened or half-changed one is visible, can be closed,
        and is opened when asked again."""
        port = wanted.port
        entry = audited(verbs.expose, caller, target=f"{record.id}:{port}", environment=record.spec.environment)
        told = {"port": port, "protocol": wanted.protocol, "public": wanted.public, "token": caller.token}
        if before is not None and before.protocol == "tcp" and wanted.protocol != "tcp":
            await self._close_on_node(record, started, port)
        wanted = replace(wanted, address=None)
        await self._put(record, {**record.tunnels, port: wanted}, ("exposed", told), entry)
        if wanted.protocol != "tcp":
            return
        try:
            await self._find(record, started, wanted)
        except ShoalError:
            if before is None:
                await self._withdraw(record, started, port)
            raise

    async def _find(self, record: SandboxRecord, started: SandboxStarted, kept: Exposure) -> None:
        """Has the node listen, and records the address. Asked each time: a relay that comes back may find its port
        taken, and the new owner of that port must not be sent a token."""
        handle = self._nodes.handle(started.node_id)
        address = await self._call(handle, "expose", record.id, kept.port, not kept.public, timeout_s=_NODE_S)
        if address != kept.address:
            record.tunnels[kept.port] = replace(kept, address=address)
            await self._writer.keep(record)

    async def _withdraw(self, record: SandboxRecord, started: SandboxStarted, port: int) -> None:
        """Closes the port on the node first, as the node may have opened it all the same, and then removes the
        record."""
        try:
            await self._close_on_node(record, started, port)
        except ShoalError:
            return
        record.tunnels.pop(port, None)
        await self._writer.keep(record, ("unexposed", {"port": port}))

    def _change(self, record: SandboxRecord) -> asyncio.Lock:
        lock = self._changing.get(record.id)
        if lock is None:
            self._changing[record.id] = lock = asyncio.Lock()
        return lock

    async def _put(
        self, record: SandboxRecord, tunnels: dict[int, Exposure], happened: tuple[str, dict[str, Any]], entry: Any
    ) -> None:
        await self._writer.put(record, happened, audit=[entry], change=lambda: {"tunnels": tunnels})

    async def _close_on_node(self, record: SandboxRecord, started: SandboxStarted, port: int) -> None:
        with suppress(NotFound):  # its container is gone, and the port with it
            await self._call(self._nodes.handle(started.node_id), "unexpose", record.id, port, timeout_s=_NODE_S)
        kept = record.tunnels.get(port)
        if kept is not None:  # else, if the store then refuses the change, it would never be opened again
            record.tunnels[port] = replace(kept, address=None)

    def _described(self, record: SandboxRecord, kept: Exposure, token_s: float | None) -> Tunnel:
        url = tunnel_url(api_url(self._api), self._api.tunnel_domain, record.id, kept.port)
        tunnel = Tunnel(
            record.id,
            kept.port,
            kept.protocol,
            kept.public,
            url=url if kept.protocol == "http" else None,
            address=kept.address,
        )
        if kept.public or token_s is None:
            return tunnel
        expires = time.time() + token_s
        return replace(tunnel, token=self._sign(record, kept, expires), expires_at=float(int(expires)))

    def _sign(self, record: SandboxRecord, kept: Exposure, expires: float) -> str:
        if kept.protocol == "http":
            return grants.sign(self.secret, record.id, CONNECT_KEY, (grants.SCOPE_TUNNEL,), expires, port=kept.port)
        # Its own scope: the relay accepts tokens of this secret at its own address, too, and does not ask what is
        # exposed.
        return grants.sign(self._secret, record.id, _running(record).key, (grants.SCOPE_PASS,), expires, port=kept.port)


def api_url(api: ApiSettings) -> str:
    """The API's URL for clients, as far as the settings tell."""
    if api.url is not None:
        return api.url
    host = f"[{api.host}]" if ":" in api.host else api.host
    return f"{'http' if api.tls_cert is None else 'https'}://{host}:{api.port}"


def _kept(record: SandboxRecord, port: int) -> Exposure:
    if record.ended:
        raise ended_error(record)
    kept = record.tunnels.get(port)
    if kept is None:
        raise TunnelNotFound(f"sandbox {record.id} has no tunnel to port {port}; expose it first")
    return kept


def _running(record: SandboxRecord) -> SandboxStarted:
    if record.ended:
        raise ended_error(record)
    if record.started is None:
        raise FailedPrecondition(f"sandbox {record.id} does not run yet; wait for it", state=record.state.value)
    return record.started
