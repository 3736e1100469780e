"""The packet rules in the kernel: loaded, compared with what should be there, and read back after a restart."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from ipaddress import IPv4Network, ip_address

from shoal.actors.network import netlink
from shoal.actors.network.addresses import AddressPool
from shoal.actors.network.commands import in_thread, must, run
from shoal.actors.network.destinations import Destination
from shoal.actors.network.links import port_name
from shoal.actors.network.pins import PINNED, pin, pin_key, pinning
from shoal.actors.network.rules import COUNTED, NODES, elements, ruleset, table_name, without_elements
from shoal.model.errors import Internal

_log = logging.getLogger(__name__)


class PacketTables:
    """The tables of one bridge. `connections`: the most that the kernel tracks for one sandbox; `pool`: who is attached
    with which address."""

    def __init__(
        self, bridge: str, subnet: IPv4Network, allow: tuple[Destination, ...], connections: int, pool: AddressPool
    ) -> None:
        self._bridge, self._subnet, self._allow, self._connections = bridge, subnet, allow, connections
        self._pool = pool
        self._dns: tuple[str, ...] = ()
        self._main, self._pins = (f"{family} {table_name(bridge)}" for family in ("inet", "bridge"))
        self._has_pins = True
        self._loaded: dict[str, str] = {}
        self._nodes: tuple[str, ...] = ()
        self._to_pin: dict[bytes, str] = {}
        self._held: set[str] = set()  # pins that the kernel has taken
        self._turn = asyncio.Lock()

    async def open(self, dns: tuple[str, ...]) -> None:
        """Loads the rules. What an earlier run closed off stays closed."""
        async with self._turn:
            self._dns = dns
            listing = await _listing(self._main)
            self._nodes = tuple(sorted({*elements(listing, NODES), *elements(listing, f"{NODES}6")}))
            await self._load_main()
            await self._load_pins()

    async def close_off(self, addresses: Iterable[str], *, replace: bool) -> None:
        """Closes these addresses to all sandboxes: in place of those before, or beside them."""
        wanted = {str(ip_address(address)) for address in addresses}
        async with self._turn:
            nodes = tuple(sorted(wanted if replace else wanted.union(self._nodes)))
            if nodes == self._nodes:
                return
            self._nodes = nodes
            await self._load_main()
        if closed := wanted.intersection(self._dns):
            _log.warning("sandboxes can't ask the name server %s: it is a node of the cluster; set network.dns", closed)

    async def pin(self, key: str, address: str) -> None:
        """Lets the sandbox's interface send from its address; from no other. The kernel takes 20 ms for a change, so
        what is asked for meanwhile goes into one."""
        if not self._has_pins:
            return
        wanted = pin_key(port_name(key), address)
        self._to_pin[wanted] = pin(port_name(key), address)
        async with self._turn:
            if wanted not in self._to_pin:
                return
            batch, self._to_pin = self._to_pin, {}
            try:
                table = self._pins.partition(" ")[2]
                await in_thread("pin a sandbox's address", lambda: netlink.add_elements(table, PINNED, batch))
            except BaseException:
                del batch[wanted]
                self._to_pin |= batch  # the others try again
                raise
            self._held.update(batch.values())

    async def verify(self) -> bool:
        """Restores the rules; returns whether any was missing: a pin that still waits for its turn is not. Forgets the
        pins of sandboxes that have gone."""
        async with self._turn:
            main, pins = await _listing(self._main), await _listing(self._pins)
            wrong = without_elements(main, COUNTED) != self._loaded[self._main]
            if wrong:
                await self._load_main()
            if self._has_pins:
                pinned, wanted = set(elements(pins, PINNED)), set(self._wanted_pins())
                lost = without_elements(pins, PINNED) != self._loaded[self._pins] or not wanted & self._held <= pinned
                if lost or pinned != wanted:
                    await self._load_pins()
                wrong |= lost
            return wrong

    async def close(self) -> None:
        """Removes the tables. Idempotent."""
        async with self._turn:
            for table in (self._main, self._pins):
                await run("nft", "delete", "table", *table.split())

    def _wanted_pins(self) -> list[str]:
        return [pin(port_name(key), address) for key, address in self._pool.holders().items()]

    async def _load_main(self) -> None:
        text = ruleset(self._bridge, self._subnet, self._dns, self._allow, self._nodes, connections=self._connections)
        await must("nft", "-f", "-", given=text)
        self._loaded[self._main] = without_elements(await _listing(self._main), COUNTED)

    async def _load_pins(self) -> None:
        wanted = self._wanted_pins()
        try:
            await must("nft", "-f", "-", given=pinning(self._pins, self._bridge, wanted))
        except Internal as error:
            if "not supported" not in error.message:
                raise
            # Sandboxes have no capability to forge an address: this is the second defence, so do without.
            self._has_pins = False
            _log.warning("this kernel has no packet rules for bridges (CONFIG_NF_TABLES_BRIDGE): %s", error)
            return
        self._held = set(wanted)
        self._loaded[self._pins] = without_elements(await _listing(self._pins), PINNED)


async def _listing(table: str) -> str:
    done = await run("nft", "list", "table", *table.split())
    return done.output if done.status == 0 else ""
