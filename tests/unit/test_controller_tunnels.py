"""Tunnels in the controller: their record, their tokens, what is asked of the node."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from shoal.actors.controller.tunnels import MAX_TUNNELS, api_url
from shoal.model import grants
from shoal.model.access import INSIDE, Caller
from shoal.model.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    QuotaExceeded,
    SandboxEnded,
    ShoalError,
    TunnelNotFound,
    Unavailable,
)
from shoal.model.settings import ApiSettings
from tests.unit.builders import spec
from tests.unit.controller_world import SECRET, Controller, World, steps

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]  # a machine may stand still for seconds


class TcpWorld(World):
    """A node that exposes ports: `exposed` by (sandbox, port).

    `fault` is raised by the next call; of the next `unheard` calls what is asked for is done, and the answer is lost.
    """

    exposed: dict[tuple[str, int], bool]
    fault: ShoalError | None = None
    unheard: int = 0
    slow: tuple[asyncio.Event, asyncio.Event] | None = None
    """The next call sets the first and waits for the second."""
    first: int = 40000
    """What is added to a port where it is exposed."""

    async def call(self, handle: Any, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        if method not in ("expose", "unexpose"):
            return await super().call(handle, method, *args, timeout_s=timeout_s)
        slow, self.slow = self.slow, None
        if slow is not None:
            slow[0].set()
            await slow[1].wait()
        fault, self.fault = self.fault, None
        if fault is not None:
            raise fault
        if method == "unexpose":
            self.exposed.pop((args[0], args[1]), None)
        else:
            self.exposed[args[0], args[1]] = args[2]
        if self.unheard:
            self.unheard -= 1
            raise DeadlineExceeded(f"{method} took longer than {timeout_s} s")
        return f"10.0.0.1:{self.first + args[1]}" if method == "expose" else None


async def world_with_sandbox() -> tuple[TcpWorld, Controller, Any]:
    world = TcpWorld()
    world.exposed = {}
    controller = await world.controller()
    info, _ = await controller.begin(controller.parts.sandboxes.create(spec(), 30, True, INSIDE))
    return world, controller, controller.parts.registry.get(info.id)


async def test_an_http_tunnel_is_its_record_and_its_token() -> None:
    world, controller, record = await world_with_sandbox()
    tunnels = controller.parts.tunnels
    made = await tunnels.expose(record.id, 8080, "http", False, Caller("tk-1"))
    assert made.url == f"http://127.0.0.1:8000/t/{record.id}/8080/"
    assert made.token is not None
    claims = grants.verify(tunnels.secret, made.token, time.time())
    assert (claims.sandbox_id, claims.key, claims.scopes, claims.port) == (record.id, "http", ("tunnel",), 8080)
    with pytest.raises(ShoalError):
        grants.verify(SECRET, made.token, time.time())
    writes = world.disk.writes
    again = await tunnels.expose(record.id, 8080, "http", False, INSIDE)
    assert again.token is not None
    assert world.disk.writes == writes
    public = await tunnels.expose(record.id, 8080, "http", True, INSIDE)
    assert (public.public, public.token, public.expires_at) == (True, None, None)
    assert [t.public for t in await tunnels.tunnels(record.id, INSIDE)] == [True]
    await controller.kill()
    second = await world.controller()
    kept = second.parts.registry.get(record.id)
    assert kept is not None
    assert await second.parts.tunnels.tunnels(kept.id, INSIDE) == [public]
    await second.parts.tunnels.unexpose(kept.id, 8080, INSIDE)
    await second.parts.tunnels.unexpose(kept.id, 8080, INSIDE)
    assert await second.parts.tunnels.tunnels(kept.id, INSIDE) == []
    told = [(e.kind, e.data["token"]) for e in world.disk.events if e.kind.endswith("exposed")]
    assert told == [("exposed", "tk-1"), ("exposed", "cluster"), ("unexposed", "cluster")]
    assert [e.action for e in world.disk.audit if e.action.startswith("tunnel")] == [
        "tunnel.expose",
        "tunnel.expose",
        "tunnel.unexpose",
    ]
    await second.kill()


async def test_a_tcp_tunnel_listens_on_the_node() -> None:
    world, controller, record = await world_with_sandbox()
    tunnels = controller.parts.tunnels
    made = await tunnels.expose(record.id, 22, "tcp", False, INSIDE)
    assert made.address == "10.0.0.1:40022"
    assert made.token is not None
    claims = grants.verify(SECRET, made.token, time.time())
    assert (claims.key, claims.port) == (record.started.key, 22), "as the relay wants it"
    assert claims.scopes == ("pass",), "good for nothing once the port is taken back"
    assert world.exposed == {(record.id, 22): True}
    await tunnels.expose(record.id, 22, "tcp", True, INSIDE)
    assert world.exposed == {(record.id, 22): False}
    changed = await tunnels.expose(record.id, 22, "http", True, INSIDE)
    assert (changed.address, world.exposed) == (None, {})
    await tunnels.expose(record.id, 22, "tcp", True, INSIDE)
    await tunnels.unexpose(record.id, 22, INSIDE)
    assert (world.exposed, record.tunnels) == ({}, {})
    await controller.kill()


async def test_one_that_could_not_be_opened_is_not_there() -> None:
    world, controller, record = await world_with_sandbox()
    tunnels = controller.parts.tunnels
    world.fault = Unavailable("the relay is being restarted")
    with pytest.raises(Unavailable):
        await tunnels.expose(record.id, 22, "tcp", False, INSIDE)
    assert await tunnels.tunnels(record.id, INSIDE) == []
    world.disk.full = True
    with pytest.raises(Unavailable):
        await tunnels.expose(record.id, 80, "http", False, INSIDE)
    world.disk.full = False
    assert record.tunnels == {}
    assert (await tunnels.expose(record.id, 22, "tcp", False, INSIDE)).address is not None
    await controller.kill()


async def test_a_port_that_the_node_opened_unheard_does_not_stay_open() -> None:
    world, controller, record = await world_with_sandbox()
    tunnels = controller.parts.tunnels
    world.unheard = 1
    with pytest.raises(DeadlineExceeded):
        await tunnels.expose(record.id, 22, "tcp", True, INSIDE)
    assert (world.exposed, record.tunnels) == ({}, {})

    async def deaf(handle: Any, method: str, *args: Any, timeout_s: float | None = None) -> Any:
        if method == "expose":
            await world.call(handle, method, *args, timeout_s=timeout_s)
        raise Unavailable("the node's actor is being restarted")

    tunnels._call = deaf
    with pytest.raises(Unavailable):
        await tunnels.expose(record.id, 22, "tcp", True, INSIDE)
    tunnels._call = world.call
    assert world.exposed == {(record.id, 22): False}
    assert [(t.port, t.address) for t in await tunnels.tunnels(record.id, INSIDE)] == [(22, None)], (
        "it may be open, so it is seen"
    )
    await tunnels.unexpose(record.id, 22, INSIDE)
    assert (world.exposed, record.tunnels) == ({}, {})
    await controller.kill()


async def test_closing_one_that_is_not_on_record_closes_it_on_the_node() -> None:
    world, controller, record = await world_with_sandbox()
    world.exposed[record.id, 22] = False
    await controller.parts.tunnels.unexpose(record.id, 22, INSIDE)
    assert world.exposed == {}
    await controller.kill()


async def test_what_the_node_closed_and_the_store_did_not_hear_of_is_opened_again() -> None:
    world, controller, record = await world_with_sandbox()
    tunnels = controller.parts.tunnels
    for change in (
        lambda: tunnels.unexpose(record.id, 22, INSIDE),
        lambda: tunnels.expose(record.id, 22, "http", True, INSIDE),
    ):
        await tunnels.expose(record.id, 22, "tcp", True, INSIDE)
        world.disk.full = True
        with pytest.raises(Unavailable):
            await change()
        world.disk.full = False
        assert world.exposed == {}
        assert (await tunnels.expose(record.id, 22, "tcp", True, INSIDE)).address is not None
        assert world.exposed == {(record.id, 22): False}
    await controller.kill()


async def test_a_change_that_failed_is_made_when_it_is_asked_for_again() -> None:
    world, controller, record = await world_with_sandbox()
    tunnels = controller.parts.tunnels
    await tunnels.expose(record.id, 22, "tcp", True, INSIDE)
    assert world.exposed == {(record.id, 22): False}
    world.fault = Unavailable("the node does not answer")
    with pytest.raises(Unavailable):
        await tunnels.expose(record.id, 22, "tcp", False, INSIDE)
    made = await tunnels.expose(record.id, 22, "tcp", False, INSIDE)
    assert (made.public, made.address) == (False, "10.0.0.1:40022")
    assert world.exposed == {(record.id, 22): True}, "it is private on the node, too"
    await controller.kill()


async def test_changes_at_once_reach_the_node_in_their_order() -> None:
    world, controller, record = await world_with_sandbox()
    tunnels = controller.parts.tunnels
    for later, kept in [
        (lambda: tunnels.expose(record.id, 22, "tcp", False, INSIDE), {(record.id, 22): True}),
        (lambda: tunnels.unexpose(record.id, 22, INSIDE), {}),
    ]:
        world.slow = asked, answered = asyncio.Event(), asyncio.Event()
        first = asyncio.ensure_future(tunnels.expose(record.id, 22, "tcp", True, INSIDE))
        await asked.wait()
        second = asyncio.ensure_future(later())
        for _ in range(100):
            await asyncio.sleep(0)
        answered.set()
        await asyncio.gather(first, second)
        assert world.exposed == kept
        assert {(record.id, port): not tunnel.public for port, tunnel in record.tunnels.items()} == kept
    await controller.kill()


async def test_a_token_for_an_http_tunnel_waits_for_no_node() -> None:
    world, controller, record = await world_with_sandbox()
    tunnels = controller.parts.tunnels
    await tunnels.expose(record.id, 80, "http", False, INSIDE)
    world.slow = asked, answered = asyncio.Event(), asyncio.Event()
    opening = asyncio.ensure_future(tunnels.expose(record.id, 22, "tcp", False, INSIDE))
    await asked.wait()
    async with asyncio.timeout(20):
        assert (await tunnels.token(record.id, 80, 60, INSIDE)).token is not None
    answered.set()
    await opening
    await controller.kill()


async def test_a_token_for_a_raw_tunnel_is_for_what_becomes_of_it() -> None:
    world, controller, record = await world_with_sandbox()
    tunnels = controller.parts.tunnels
    for change, outcome in [
        (lambda: tunnels.expose(record.id, 22, "http", False, INSIDE), f"http://127.0.0.1:8000/t/{record.id}/22/"),
        (lambda: tunnels.unexpose(record.id, 22, INSIDE), None),
    ]:
        await tunnels.expose(record.id, 22, "tcp", False, INSIDE)
        world.slow = asked, answered = asyncio.Event(), asyncio.Event()
        changing = asyncio.ensure_future(change())
        await asked.wait()
        token = asyncio.ensure_future(tunnels.token(record.id, 22, 60, INSIDE))
        await steps(5)
        answered.set()
        await changing
        if outcome is None:
            with pytest.raises(TunnelNotFound):
                await token
        else:
            assert (await token).url == outcome
        assert world.exposed == {}, "it is not opened again for that"
    await controller.kill()


async def test_a_port_that_moved_is_told_of_and_kept() -> None:
    """As when a relay comes back and finds its port taken: a token must not go to whoever has that now."""
    world, controller, record = await world_with_sandbox()
    tunnels = controller.parts.tunnels
    assert (await tunnels.expose(record.id, 22, "tcp", False, INSIDE)).address == "10.0.0.1:40022"
    world.first = 50000
    assert (await tunnels.token(record.id, 22, 60, INSIDE)).address == "10.0.0.1:50022"
    world.first = 60000
    assert (await tunnels.expose(record.id, 22, "tcp", False, INSIDE)).address == "10.0.0.1:60022"
    assert [tunnel.address for tunnel in await tunnels.tunnels(record.id, INSIDE)] == ["10.0.0.1:60022"]
    await controller.kill()
    second = await world.controller()
    kept = second.parts.registry.get(record.id)
    assert kept.tunnels[22].address == "10.0.0.1:60022"
    await second.kill()


async def test_bad_calls_are_named() -> None:
    _, controller, record = await world_with_sandbox()
    tunnels = controller.parts.tunnels
    for port, protocol in ((0, "http"), (65536, "http"), (True, "http"), (80, "udp")):
        with pytest.raises(InvalidRequest):
            await tunnels.expose(record.id, port, protocol, False, INSIDE)
    with pytest.raises(InvalidRequest):
        await tunnels.unexpose(record.id, 65536, INSIDE)
    with pytest.raises(TunnelNotFound):
        await tunnels.token(record.id, 80, 60, INSIDE)
    for number in range(MAX_TUNNELS):
        await tunnels.expose(record.id, 1000 + number, "http", True, INSIDE)
    with pytest.raises(QuotaExceeded):
        await tunnels.expose(record.id, 80, "http", True, INSIDE)
    for expires_in in (0, 8 * 86400, float("inf")):
        with pytest.raises(InvalidRequest):
            await tunnels.token(record.id, 1000, expires_in, INSIDE)
    await controller.begin(controller.parts.sandboxes.terminate(record.id, INSIDE))
    assert await tunnels.tunnels(record.id, INSIDE) == []
    with pytest.raises(SandboxEnded):
        await tunnels.expose(record.id, 1000, "http", True, INSIDE)
    with pytest.raises(SandboxEnded):
        await tunnels.token(record.id, 1000, 60, INSIDE)
    await controller.kill()


async def test_before_it_runs_there_is_nothing_to_expose() -> None:
    world = World(capacity=0)
    controller = await world.controller()
    info, _ = await controller.begin(controller.parts.sandboxes.create(spec(), 30, False, INSIDE))
    record = controller.parts.registry.get(info.id)
    assert record is not None
    with pytest.raises(FailedPrecondition):
        await controller.parts.tunnels.expose(record.id, 80, "http", True, INSIDE)
    await controller.kill()


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"host": "::1", "port": 80, "tls_cert": "/c", "tls_key": "/k"}, "https://[::1]:80"),
        ({"url": "https://shoal.example.com"}, "https://shoal.example.com"),
    ],
)
def test_urls_are_those_of_the_api(settings: dict[str, Any], url: str) -> None:
    assert api_url(ApiSettings.model_validate(settings)) == url
