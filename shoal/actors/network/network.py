"""Sandbox networking on one node. See the package for its parts.

A sandbox with `network="default"` gets an interface on a bridge that leads out through the node's address translation;
`rules.py` says where to. One with `network="none"` is never attached, and has only its own loopback.

State is the kernel's own: interfaces carry their sandbox's key and address as an alias, so a node that starts again
finds them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path

from shoal.actors.network import forwarding, links, namespaces
from shoal.actors.network.addresses import AddressPool
from shoal.actors.network.destinations import parse_destination, parse_subnet
from shoal.actors.network.links import Port, port_name
from shoal.actors.network.resolvers import RESOLV_FILES, choose_servers, resolv_conf
from shoal.actors.network.tables import PacketTables
from shoal.model import tasks
from shoal.model.errors import FailedPrecondition, InvalidRequest
from shoal.model.settings import NetworkSettings

_log = logging.getLogger(__name__)

_AT_ONCE = 4
"""Attaches and detaches that run side by side: the kernel does them one by one anyway."""


class SandboxNetwork:
    """The network of one node's sandboxes. `cluster`: marks the bridge, so that two clusters on one machine do not
    share it by mistake. Raises `InvalidRequest` for an invalid setting."""

    def __init__(self, settings: NetworkSettings, cluster: str) -> None:
        self._bridge = settings.bridge
        self._cluster = cluster
        self._subnet = parse_subnet(settings.subnet)
        self._configured = settings.dns
        self._pool = AddressPool(self._subnet)
        allow = tuple(parse_destination(entry) for entry in settings.allow)
        self._tables = PacketTables(self._bridge, self._subnet, allow, settings.connections, self._pool)
        self._dns: tuple[str, ...] = ()
        self._opened = False
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        self._keys: dict[str, asyncio.Lock] = {}
        self._pinned: dict[str, str] = {}  # by this process
        self._setup = asyncio.Lock()

    async def open(self) -> None:
        """Creates what is missing of bridge and rules, and finds the sandboxes that are attached. Idempotent.
        `FailedPrecondition` without the rights or programs for it, or if the bridge's name is taken; `InvalidRequest`
        if the node uses the subnet otherwise."""
        async with self._setup:
            # Before any change: the bridge may be another cluster's.
            await links.check_bridge(self._bridge, self._subnet, self._cluster)
            self._dns = await self._choose_servers()
            if links.exists(self._bridge):
                for port in await links.ports(self._bridge):
                    self._pool.claim(port.key, port.address)
            # Rules first: an interface on a bridge without rules would be open to everything.
            await self._tables.open(self._dns)
            await links.ensure_bridge(self._bridge, self._pool.gateway, self._subnet, self._cluster)
            await forwarding.let_pass(self._bridge)
            self._opened = True

    async def prepare(self, key: str) -> None:
        """Does what needs no container yet, so that `attach` is faster by the 20 ms in which the kernel takes a rule:
        chooses the address and pins it. `Unavailable` if all addresses are taken. `detach` undoes it."""
        async with self._lock(key):
            await self._pin(key, self._pool.take(key))

    async def make_namespace(self, pin: Path) -> None:
        """Makes a network namespace with a loopback only, pinned by the file `pin`, in place of one that is there."""
        await namespaces.make(pin)

    async def remove_namespace(self, pin: Path) -> None:
        """Unpins it. Idempotent."""
        await namespaces.remove(pin)

    async def attach(self, key: str, holder: int | Path, address: str | None = None) -> str:
        """Gives the container `key` an interface in the network namespace of `holder`: its first process's pid, or a
        file that pins one. Returns its IPv4 address. `address`: use exactly this one. An attached container keeps its
        address. All or nothing. `NotFound` if the process is gone, `Unavailable` if all addresses are taken."""
        if not self._opened:
            raise FailedPrecondition("the sandbox network is not open; call `open` first", state="closed")
        async with self._lock(key):
            had = self._pool.of(key)
            if had is not None and links.exists(port_name(key)):
                return had
            if address is not None:
                self._pool.claim(key, address)
            port = Port(port_name(key), key, self._pool.take(key))
            try:
                async with self._at_once:
                    results = await asyncio.gather(
                        self._pin(key, port.address),
                        links.connect(port, holder, self._bridge, (self._pool.gateway, self._subnet)),
                        return_exceptions=True,  # both have ended before anything is undone
                    )
                for result in results:
                    if isinstance(result, BaseException):
                        raise result
            except BaseException:
                await asyncio.shield(tasks.shared(self._disconnect(key), "disconnect"))
                raise
            return port.address

    async def detach(self, key: str) -> None:
        """Removes the interface and frees the address. Idempotent."""
        async with self._lock(key):
            await self._disconnect(key)
        self._keys.pop(key, None)

    def attached(self) -> dict[str, str]:
        """Key → address of all that are attached, including those of an earlier run."""
        return self._pool.holders()

    async def close_off(self, addresses: Iterable[str], *, replace: bool = True) -> None:
        """Closes these addresses, IPv4 or IPv6, to all sandboxes, whatever the settings open: those of the cluster's
        nodes. `replace`: in place of those before; else beside them. They outlive this process."""
        await self._tables.close_off(addresses, replace=replace)

    async def verify(self) -> bool:
        """Restores rules, bridge and forwarding; returns whether anything was missing."""
        async with self._setup:
            wrong = await self._tables.verify()
            wrong |= await links.ensure_bridge(self._bridge, self._pool.gateway, self._subnet, self._cluster)
            wrong |= await forwarding.let_pass(self._bridge)
            if wrong:
                _log.warning("the sandbox network %s was not as it should be; it is again", self._bridge)
            return wrong

    async def close(self) -> None:
        """Removes everything, including every sandbox's interface: for the end of the cluster, not of this process.
        Leaves forwarding on, as others may need it by now. Idempotent."""
        async with self._setup:
            self._opened = False
            await links.remove_bridge(self._bridge)
            await forwarding.take_back(self._bridge)
            await self._tables.close()
            self._pool.clear()
            self._pinned.clear()

    def resolv_conf(self) -> str:
        """`/etc/resolv.conf` for sandboxes with this network, once it is open; those without a network get an empty
        one."""
        return resolv_conf(self._dns)

    async def _pin(self, key: str, address: str) -> None:
        if self._pinned.get(key) != address:
            await self._tables.pin(key, address)
            self._pinned[key] = address

    async def _disconnect(self, key: str) -> None:
        self._pinned.pop(key, None)
        async with self._at_once:
            await links.disconnect(key)
        self._pool.free(key)

    async def _choose_servers(self) -> tuple[str, ...]:
        own = await links.own_addresses()
        texts = await asyncio.to_thread(_resolv_texts)
        servers = choose_servers(self._configured, texts, own)
        if not servers:
            if self._configured:
                raise InvalidRequest(
                    "network.dns: all of them are this node itself, which sandboxes never reach", field="network.dns"
                )
            _log.warning("no name server that sandboxes can ask was found on this machine; set network.dns")
        return servers

    def _lock(self, key: str) -> asyncio.Lock:
        return self._keys.setdefault(key, asyncio.Lock())


def _resolv_texts() -> list[str]:
    texts = []
    for file in RESOLV_FILES:
        try:
            texts.append(file.read_text(errors="replace"))
        except OSError:
            # This machine does not use this file.
            continue
    return texts
