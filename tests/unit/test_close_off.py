"""Every machine's addresses are closed on every machine, as machines come and go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from shoal.actors.controller.nodes import LOST_S, Nodes
from shoal.actors.node import wiring
from shoal.model.errors import Unavailable
from shoal.model.info import NodeInfo
from shoal.model.metrics import Series
from shoal.model.settings import Settings
from tests.unit.builders import node_info
from tests.unit.node_world import machine

pytestmark = pytest.mark.anyio


class Host:
    """A machine whose node actor remembers what it was told last. `misses`: so many calls of it are lost."""

    def __init__(self, name: str, *addresses: str) -> None:
        self.name, self.addresses = name, list(addresses)
        self.closed: set[str] = set()
        self.hangs, self.misses = False, 0

    async def info(self, epoch: int) -> NodeInfo:
        if self.hangs:
            raise Unavailable("it does not answer")
        return node_info(self.name)

    async def series(self) -> dict[Series, float]:
        return {}

    async def close_off(self, addresses: Sequence[str], complete: bool) -> list[str]:
        if self.misses:
            self.misses -= 1
            raise Unavailable("the call was lost")
        self.closed = set(addresses) if complete else self.closed | set(addresses)
        return self.addresses


class World:
    """The machines that Ray lists, and the class that makes their node actors."""

    def __init__(self, *hosts: Host) -> None:
        self.hosts = list(hosts)
        self.now = 1000.0

    def listed(self) -> list[dict[str, Any]]:
        return [
            {"NodeID": h.name, "Alive": True, "Resources": {}, "NodeManagerAddress": h.addresses[0]} for h in self.hosts
        ]

    def controller(self) -> Nodes:
        return Nodes(
            Settings(),
            "test",
            b"s" * 32,
            call=self.call,
            clock=lambda: self.now,
            list_machines=self.listed,
            _class=self,
        )

    async def call(self, host: Host, method: str, *arguments: Any, timeout_s: float) -> Any:
        return await getattr(host, method)(*arguments)

    def options(self, **options: Any) -> World:
        self.made = options["scheduling_strategy"].node_id
        return self

    def remote(self, *_: Any) -> Host:
        return next(host for host in self.hosts if host.name == self.made)


A = ("10.0.0.1", "198.51.100.1", "fd00::1")
B = ("10.0.0.2", "198.51.100.2")


async def test_each_machine_closes_the_addresses_of_all() -> None:
    one, other = Host("1" * 56, *A), Host("2" * 56, *B)
    nodes = World(one, other).controller()
    await nodes.refresh(wait_s=5)
    assert {A[0], B[0]} <= one.closed & other.closed, "those that Ray knows, at the first look"
    await nodes.refresh(wait_s=5)
    assert one.closed == other.closed == {*A, *B}


async def test_it_follows_as_machines_come_and_go_and_reaches_one_that_missed_a_call() -> None:
    one, other = Host("1" * 56, *A), Host("2" * 56, *B)
    world = World(one)
    nodes = world.controller()
    for _ in range(2):
        await nodes.refresh(wait_s=5)
    assert one.closed == set(A)
    one.misses = 2
    world.hosts.append(other)
    for _ in range(2):
        await nodes.refresh(wait_s=5)
    assert one.closed == set(A)
    await nodes.refresh(wait_s=5)
    assert one.closed == {*A, *B}
    one.closed = set()  # its actor was killed, and its rules were removed
    await nodes.refresh(wait_s=5)
    assert one.closed == {*A, *B}
    world.hosts.remove(other)
    other.hangs = True
    await nodes.refresh(wait_s=5)
    world.now += LOST_S
    for _ in range(2):
        await nodes.refresh(wait_s=5)
    assert one.closed == set(A)


async def test_a_machine_that_hangs_while_the_controller_restarts_stays_closed() -> None:
    one, other = Host("1" * 56, *A), Host("2" * 56, *B)
    world = World(one, other)
    nodes = world.controller()
    for _ in range(2):
        await nodes.refresh(wait_s=5)
    other.hangs = True
    again = world.controller()
    for _ in range(2):
        await again.refresh(wait_s=5)
    assert one.closed == {*A, *B}


async def test_the_node_closes_them_and_tells_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    async with machine(monkeypatch) as m:
        own = await m.node.close_off(["198.51.100.2"], True)
        assert m.net.closed == ["198.51.100.2"]
        assert own == wiring.own_addresses()
        assert not {"127.0.0.1", "::1"} & set(own)
