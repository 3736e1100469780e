"""The packet rules, loaded into a kernel that remembers what it was told."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterable
from ipaddress import IPv4Network

import pytest

from shoal.actors.network import netlink, tables
from shoal.actors.network.addresses import AddressPool
from shoal.actors.network.commands import Done
from shoal.actors.network.links import port_name
from shoal.actors.network.pins import PINNED, pin
from shoal.actors.network.rules import table_name
from shoal.actors.network.tables import PacketTables
from shoal.model.errors import Internal

pytestmark = pytest.mark.anyio

SUBNET = IPv4Network("10.213.0.0/24")


class Kernel:
    """`failures`: what the next commands for bridges fail with. `told`: the arguments of each change to a set. `held`:
    the pins in a listing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failures: list[str] = []
        self.told: list[frozenset[bytes]] = []
        self.held: list[str] = []
        monkeypatch.setattr(tables, "must", self.must)
        monkeypatch.setattr(netlink, "add_elements", self.add_elements)
        monkeypatch.setattr(tables, "run", self.run)

    async def must(self, *argv: str, given: str = "") -> str:
        await asyncio.sleep(0)
        if self.failures and "bridge" in given.partition("{")[0]:
            raise Internal(self.failures.pop(0))
        return ""

    def add_elements(self, table: str, name: str, keys: Iterable[bytes]) -> None:
        assert (table, name) == (table_name("b0"), PINNED)
        if self.failures:
            raise OSError(errno.EINTR, self.failures.pop(0))
        self.told.append(frozenset(keys))

    async def run(self, *argv: str) -> Done:
        held = f"set {PINNED} {{\n\t\telements = {{ {', '.join(self.held)} }}\n\t}}\n"
        return Done(0, held if "bridge" in argv else "", "")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


def made() -> PacketTables:
    return PacketTables("b0", SUBNET, (), 4096, AddressPool(SUBNET))


async def test_what_is_pinned_meanwhile_goes_into_one_change(kernel: Kernel) -> None:
    packets = made()
    await packets.open(())
    await asyncio.gather(*(packets.pin(f"c-{n}", f"10.213.0.{n}") for n in range(2, 12)))
    assert len(kernel.told) <= 2
    assert sum(map(len, kernel.told)) == 10


async def test_a_change_that_fails_is_made_again_by_those_it_was_not_for(kernel: Kernel) -> None:
    packets = made()
    await packets.open(())
    kernel.failures = ["a moment's trouble"]
    outcomes = await asyncio.gather(
        *(packets.pin(f"c-{n}", f"10.213.0.{n}") for n in range(2, 6)), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes if outcome is not None] == [Internal]
    assert sum(map(len, kernel.told)) == 3


async def test_without_rules_for_bridges_sandboxes_have_a_network_all_the_same(kernel: Kernel) -> None:
    packets = made()
    kernel.failures = ["Error: Could not process rule: Operation not supported"]
    await packets.open(())
    await packets.pin("c-2", "10.213.0.2")
    assert kernel.told == []


async def test_a_moments_trouble_is_not_taken_for_such_a_kernel(kernel: Kernel) -> None:
    packets = made()
    kernel.failures = ["Error: Interrupted system call"]
    with pytest.raises(Internal):
        await packets.open(())
    await packets.open(())
    await packets.pin("c-2", "10.213.0.2")
    assert len(kernel.told) == 1


async def test_a_pin_that_waits_for_its_turn_is_not_lost_and_one_that_is_gone_is(kernel: Kernel) -> None:
    pool = AddressPool(SUBNET)
    packets = PacketTables("b0", SUBNET, (), 4096, pool)
    await packets.open(())
    address = pool.take("c-2")
    assert not await packets.verify()
    await packets.pin("c-2", address)
    kernel.held = [pin(port_name("c-2"), address)]
    assert not await packets.verify()
    pool.take("c-3")
    kernel.held = []
    assert await packets.verify()
