"""A declared pool in a real cluster: it fills, serves, outlives its controller, replaces what dies, leaves nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray

import shoal
from shoal.model.errors import NotFound
from shoal.model.ids import NAMESPACE
from tests.cluster import Cluster
from tests.processes import actor_pid, kill

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]

SHAPE: dict[str, Any] = {"cpu": (0.05, 1.0), "memory": (32, 222), "hostname": "pooled"}
READY = 2


def until(true: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"it never came to be: {what}"
        time.sleep(0.1)


def kept(cluster: Cluster) -> dict[str, str | None]:
    """The slots that the node has prepared containers of the pool's shape for, and None for those of sandboxes; by
    container."""
    found = {}
    for path in (cluster.machine.state_dir / "node" / "containers").glob("*.json"):
        try:
            record = json.loads(path.read_text())
        except FileNotFoundError:
            continue  # removed meanwhile
        if record["shape"]["hostname"] == SHAPE["hostname"]:
            found[record["key"]] = record["slot_id"]
    return found


def living(slots: set[str]) -> set[str]:
    named = ray.util.list_named_actors(all_namespaces=True)
    return slots & {each["name"] for each in named if each["namespace"] == NAMESPACE}


@pytest.fixture(scope="module")
def pool(cluster: Cluster) -> Iterator[shoal.Pool]:
    made = shoal.Pool.create("engine", min_ready=READY, **SHAPE)
    made.wait_ready(timeout=90)
    yield made
    slots = {slot for slot in kept(cluster).values() if slot is not None}
    made.resize(0)
    until(lambda: kept(cluster) == {}, "nothing of it is left on the node")
    until(lambda: not living(slots), "its slots have ended")
    made.delete()
    with pytest.raises(shoal.PoolNotFound):
        made.info()


def test_a_take_sets_what_is_its_own_and_answers(pool: shoal.Pool, cluster: Cluster, both_ways: shoal.Client) -> None:
    pool.wait_ready(timeout=60)
    before = kept(cluster)
    found = shoal.Pool.get("engine")
    with found.take(env={"SEED": "7"}, name="taken", tags={"of": "pool"}, workdir="/w", timeout=99) as sandbox:
        assert (
            sandbox.run("echo $SEED $PWD $(hostname); ls -A -I .gvisor /tmp /w").stdout == "7 /w pooled\n/tmp:\n\n/w:\n"
        )
        info = sandbox.info()
        assert (info.spec.name, dict(info.tags), info.spec.timeout) == ("taken", {"of": "pool"}, 99)
        until(lambda: any(slot is None and key in before for key, slot in kept(cluster).items()), "it was ready", 5)
    assert found.info().use.taken >= 1


def test_a_create_that_asks_for_the_same_takes_one_by_itself(pool: shoal.Pool) -> None:
    pool.wait_ready(timeout=60)
    before = pool.info().use.taken
    with shoal.Sandbox.create("sleep", "99", **SHAPE) as sandbox:
        assert sandbox.run("true").returncode == 0
    assert pool.info().use.taken == before + 1


@pytest.mark.long
def test_a_restarted_controller_keeps_the_pool_and_what_is_ready(pool: shoal.Pool, cluster: Cluster) -> None:
    pool.wait_ready(timeout=60)
    until(lambda: len(kept(cluster)) == READY, "only what is ready is there")
    before = kept(cluster)
    kill(actor_pid("controller"))
    pool.wait_ready(timeout=60)
    assert kept(cluster) == before


@pytest.mark.long
def test_a_slot_that_is_killed_is_replaced_and_its_container_removed(pool: shoal.Pool, cluster: Cluster) -> None:
    pool.wait_ready(timeout=60)
    key, slot = next((key, slot) for key, slot in kept(cluster).items() if slot is not None)
    kill(actor_pid(slot))
    until(lambda: key not in kept(cluster), "its container is removed")
    pool.wait_ready(timeout=60)
    assert slot not in kept(cluster).values()


@pytest.mark.long
def test_a_node_actor_that_is_killed_loses_nothing_that_is_ready(pool: shoal.Pool, cluster: Cluster) -> None:
    pool.wait_ready(timeout=60)
    before = kept(cluster)
    (node,) = cluster.client.nodes()
    kill(actor_pid(f"node-{node.id}"))
    with pool.take() as sandbox:
        assert sandbox.run("hostname").stdout == "pooled\n"
        until(lambda: any(slot is None and key in before for key, slot in kept(cluster).items()), "the node is told")


def test_an_image_that_is_not_there_is_told(cluster: Cluster) -> None:
    with shoal.Pool.create("lost", image="localhost:1/none/such", min_ready=1, cpu=(0.05, 1.0)) as pool:
        until(lambda: pool.info().use.problem is not None, "why it is empty")
        assert pool.info().use.ready == 0
    with pytest.raises(NotFound):
        pool.info()
