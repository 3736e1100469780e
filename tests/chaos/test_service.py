"""Each part of the service is killed with SIGKILL under a load of creates and execs over HTTP; then everything is
counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

import shoal
from tests import leaks
from tests.chaos.accounts import Load, Tally
from tests.cluster import Cluster
from tests.processes import actor_names, actor_pid, gateway_pid, kill_once_there

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(300)]

CALLERS = 4
KILLS = 2


@pytest.fixture
def over_http(cluster: Cluster) -> Iterator[shoal.Client]:
    """A client of the API; calls without a client go on to use the one inside the cluster."""
    _, token = cluster.client.create_token("chaos", environment="main", scope="run")
    client = shoal.connect(cluster.file.api_url, token=token)
    shoal.client.cluster.use(cluster.client)
    with client:
        yield client


def a_replica() -> int:
    return actor_pid(actor_names("SERVE_REPLICA::shoal")[0])


def the_serve_controller() -> int:
    return actor_pid("SERVE_CONTROLLER_ACTOR")


def the_gateway() -> int:
    pid = gateway_pid()
    assert pid is not None
    return pid


def the_controller() -> int:
    return actor_pid("controller")


def the_node_actor() -> int:
    return actor_pid(actor_names("node-")[0])


def a_sandbox_actor() -> int:
    return actor_pid(actor_names("slot-")[-1])


@pytest.mark.parametrize(
    ("name", "victim"),
    [
        ("a Serve replica", a_replica),
        ("the Serve controller", the_serve_controller),
        ("the gateway", the_gateway),
        ("Shoal's controller", the_controller),
        ("a node actor", the_node_actor),
        ("a sandbox actor", a_sandbox_actor),
    ],
)
def test_nothing_is_lost_doubled_or_leaked(
    cluster: Cluster, over_http: shoal.Client, tallies: list[Tally], name: str, victim: Callable[[], int]
) -> None:
    before = leaks.look(cluster.file)
    with Load(over_http, name, CALLERS) as load:
        for _ in range(KILLS):
            load.wait_for(5)
            kill_once_there(victim)
            load.tally.kills += 1
        load.wait_for(5, within=90)
        time.sleep(1)
    tally = load.settle()
    tallies.append(tally)
    try:
        leaks.assert_none(cluster.file, before)
    except AssertionError:
        tally.leaked += 1
        raise
    assert tally.creates >= 3 * 5
    assert tally.execs > tally.creates
    assert tally.clean, tally
