"""Pools as clients see them: bad input, names and environments, quotas, and a restart of the controller."""

from __future__ import annotations

from typing import Any

import pytest

import shoal
from shoal.model.access import INSIDE, Caller, Quota, Scope
from shoal.model.errors import (
    AlreadyExists,
    EnvironmentNotFound,
    FailedPrecondition,
    InvalidRequest,
    PoolNotFound,
    QuotaExceeded,
    ShoalError,
)
from shoal.model.pools import PoolInfo
from tests.fakes.cluster import FakeTransport
from tests.unit.builders import resources, spec
from tests.unit.controller_world import Controller, World, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]


async def make(controller: Controller, name: str = "python", least: int = 1, most: int = 2, **changes: Any) -> PoolInfo:
    replace = changes.pop("replace", False)
    return await controller.parts.declared_pools.create(name, spec(**changes), least, most, replace, INSIDE)


async def ready(controller: Controller, name: str, count: int) -> None:
    pools = controller.parts.declared_pools
    await until(lambda: pools.pool(name, "main", INSIDE).use.ready == count, f"{count} are ready")


@pytest.mark.parametrize(
    ("least", "most", "changes", "error", "field"),
    [
        (3, 2, {}, InvalidRequest, "min_ready"),
        (-1, 2, {}, InvalidRequest, "min_ready"),
        (0, -1, {}, InvalidRequest, "max_ready"),
        (0, 10**9, {}, InvalidRequest, "max_ready"),
        (True, 2, {}, InvalidRequest, "min_ready"),
        (1, 2.5, {}, InvalidRequest, "max_ready"),
        (1, 2, {"env": {"A": "1"}}, InvalidRequest, "env"),
        (1, 2, {"command": ("true",)}, InvalidRequest, "command"),
        (1, 2, {"owner_lease": 60.0}, InvalidRequest, "owner_lease"),
        (1, 2, {"persistent": True}, InvalidRequest, "persistent"),
        (1, 2, {"image": ""}, InvalidRequest, "image"),
        (1, 2, {"resources": resources(cpu_request=1000.0, cpu_limit=1000.0)}, InvalidRequest, "cpu"),
        (1, 2, {"resources": resources(gpu=1)}, InvalidRequest, "gpu"),
        (1, 2, {"runtime": "kata"}, InvalidRequest, "runtime"),
        (1, 2, {"environment": "none"}, EnvironmentNotFound, "environment"),
    ],
)
async def test_what_cannot_be_is_refused_at_once(
    least: Any, most: Any, changes: dict[str, Any], error: type[ShoalError], field: str
) -> None:
    world = World(room=20)
    controller = await world.controller()
    with pytest.raises(error) as caught:
        await make(controller, least=least, most=most, **changes)
    assert caught.value.field == field
    assert controller.parts.declared_pools.pools(None, INSIDE) == []
    assert world.disk.pools == {}
    await controller.kill()


async def test_names_are_of_one_environment_and_the_same_again_is_the_same() -> None:
    world = World(room=20)
    controller = await world.controller()
    pools, accounts = controller.parts.declared_pools, controller.parts.accounts
    await accounts.create_environment("dev", Quota(), INSIDE)
    first = await make(controller)
    assert (await make(controller)).created_at == first.created_at
    with pytest.raises(AlreadyExists) as caught:
        await make(controller, hostname="other")
    assert caught.value.field == "name"
    with pytest.raises(AlreadyExists) as caught:
        await make(controller, name="twin")
    assert caught.value.field == "spec"
    await make(controller, environment="dev")
    ann = Caller("tk-1", "dev", Scope.RUN)
    assert [info.id for info in pools.pools(None, INSIDE)] == ["dev/python", "main/python"]
    assert [info.id for info in pools.pools(None, ann)] == ["dev/python"]
    with pytest.raises(PoolNotFound) as missing:
        pools.pool("none", "dev", ann)
    assert missing.value.field == "name"
    with pytest.raises(PoolNotFound):
        await pools.resize("none", "dev", 1, 1, ann)
    with pytest.raises(PoolNotFound):
        await pools.delete("none", "dev", ann)
    with pytest.raises(EnvironmentNotFound):
        pools.pool("python", "main", ann)
    with pytest.raises(FailedPrecondition) as in_use:
        await accounts.delete_environment("dev", INSIDE)
    assert in_use.value.fields["state"] == "in_use"
    await pools.delete("python", "dev", INSIDE)
    await accounts.delete_environment("dev", INSIDE)
    await controller.kill()


async def test_a_pool_is_resized_replaced_and_deleted_and_each_leaves_nothing_of_before() -> None:
    world = World(room=20)
    controller = await world.controller()
    pools = controller.parts.declared_pools
    await make(controller, least=3, most=3)
    await ready(controller, "python", 3)
    assert (await pools.resize("python", "main", 0, 1, INSIDE)).max_ready == 1
    await ready(controller, "python", 1)
    before = set(world.prepared)
    await make(controller, least=2, most=2, hostname="other", replace=True)
    await ready(controller, "python", 2)
    await until(lambda: not before & set(world.prepared), "what was ready of the old spec has ended")
    assert {shape.hostname for shape in world.prepared.values()} == {"other"}
    await pools.delete("python", "main", INSIDE)
    await until(lambda: world.prepared == {}, "nothing is left")
    assert not any(slot.alive for slot in world.slots.values())
    assert [entry.action for entry in world.disk.audit if entry.action.startswith("pool.")] == [
        "pool.create", "pool.resize", "pool.create", "pool.delete",
    ]  # fmt: skip
    await controller.kill()


async def test_a_restarted_controller_keeps_the_pool_and_what_is_ready_of_it() -> None:
    world = World(room=20)
    controller = await world.controller()
    await make(controller, least=3, most=5)
    await ready(controller, "python", 3)
    before = set(world.prepared)
    await controller.kill()
    controller = await world.controller()
    await ready(controller, "python", 3)
    assert set(world.prepared) == before
    assert {slot.id for slot in world.slots.values() if slot.alive} == before
    await controller.kill()


async def test_what_is_ready_takes_no_room_of_the_quota_from_sandboxes() -> None:
    world = World(room=20)
    controller = await world.controller()
    await controller.parts.accounts.set_quota("main", Quota(sandboxes=4), INSIDE)
    with pytest.raises(QuotaExceeded) as caught:
        await make(controller, least=5, most=5)
    assert caught.value.field == "min_ready"
    await make(controller, least=3, most=4)
    await ready(controller, "python", 3)
    for _ in range(4):
        await controller.parts.sandboxes.create(spec(), 5.0, True, INSIDE)
    await ready(controller, "python", 0)
    with pytest.raises(QuotaExceeded):
        await controller.parts.sandboxes.create(spec(), 5.0, True, INSIDE)
    info = controller.parts.declared_pools.pool("python", "main", INSIDE)
    assert (info.use.in_use, info.use.taken + info.use.missed) == (4, 4)
    await controller.kill()


async def test_metrics_tell_of_each_pool() -> None:
    world = World(room=20)
    controller = await world.controller()
    await make(controller, least=2, most=2)
    await ready(controller, "python", 2)
    await controller.parts.sandboxes.create(spec(), 5.0, True, INSIDE)
    told = controller.parts.collect_metrics(INSIDE)
    values = {(series.name, series.labels): value for series, value in told.items()}
    pool = (("environment", "main"), ("pool", "python"))
    assert values["shoal_pool_takes_total", (*pool, ("ready", "true"))] == 1
    assert values["shoal_pool_ready", pool] + values["shoal_pool_making", pool] <= 2
    await controller.kill()


async def test_the_client_makes_takes_resizes_and_deletes() -> None:
    transport = FakeTransport()
    client = shoal.Client(transport)
    pool = await shoal.Pool.create.aio("python", min_ready=0, max_ready=3, timeout=77.0, client=client)
    assert [each.name for each in await shoal.Pool.list.aio(client=client)] == ["python"]
    sandbox = await pool.take.aio("sleep", "9", env={"A": "1"}, name="web", tags={"run": "7"})
    info = await sandbox.info.aio()
    assert (info.spec.timeout, info.spec.name, info.spec.command) == (77.0, "web", ("sleep", "9"))
    assert (dict(info.spec.env), info.tags) == ({"A": "1"}, {"run": "7"})
    assert (await pool.info.aio()).use.in_use == 1
    with pytest.raises(InvalidRequest) as caught:
        await pool.take.aio(image="other")  # type: ignore[call-arg]
    assert caught.value.field == "image"
    assert (await pool.resize.aio(0)).max_ready == 0
    await (await shoal.Pool.get.aio("python", client=client)).delete.aio()
    with pytest.raises(PoolNotFound):
        await pool.info.aio()
    with pytest.raises(InvalidRequest) as caught:
        await shoal.Pool.create.aio("x", min_ready=2, max_ready=1, client=client)
    assert caught.value.field == "min_ready"
    await sandbox.terminate.aio()
