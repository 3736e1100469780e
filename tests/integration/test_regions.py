"""Two nodes in two regions, both on this machine: where sandboxes start, and what waits for which."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

import shoal
from shoal.actors.names import MACHINE_LABEL
from shoal.client.cluster import Client
from shoal.cluster.local import ray as local_ray
from shoal.model import machine
from shoal.model.machine import MachineFile
from tests.cluster import Cluster, free_subnet

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]

WEST = "west-1"

T = TypeVar("T")


@pytest.fixture(scope="module")
def west(cluster: Cluster) -> Iterator[str]:
    """A second node, in a region of its own: its id. It is on the loopback, where `shoal join` adds none."""
    directory = Path(tempfile.mkdtemp(prefix="shoal-", dir="/tmp"))
    name, file = directory.name, directory / "machine.json"
    own = {
        "state_dir": str(directory / "s"),
        "run_dir": str(directory / "r"),
        "network": {"bridge": name, "subnet": str(free_subnet())},
    }
    MachineFile(name, own).write(file)
    options = local_ray.WorkerOptions(
        owner=name,
        temp_dir=local_ray.choose_temp_dir(directory / "s", directory / "r"),
        token_path=Path(cluster.file.auth_token_path),
        head=cluster.file.ray_address,
        cpus=2,
        region=WEST,
        zone="west-1a",
        labels={MACHINE_LABEL: name},
        # On a loopback Ray refuses a second node, unless it is told that this is meant.
        environ={machine.VARIABLE: str(file), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"},
    )
    client = cluster.client
    try:
        local_ray.join(options)
        node_id = until(lambda: next((node.id for node in client.nodes() if node.region == WEST), None), "it joins")
        yield node_id
        client.drain_node(node_id, why="the test is over", force=True, timeout=30)
    finally:
        local_ray.stop(name, options.temp_dir)
        shutil.rmtree(directory, ignore_errors=True)


def test_sandboxes_start_where_they_may_and_wait_for_no_other_place(cluster: Cluster, west: str) -> None:
    client = cluster.client
    with shoal.Sandbox.create(region=["nowhere", WEST], zone="west-1a", client=client) as there:
        assert there.info().node_id == west
        assert there.run("echo", "hello").stdout == "hello\n"
    with (
        shoal.Sandbox.create(placement="spread", client=client) as one,
        shoal.Sandbox.create(placement="spread", client=client) as two,
    ):
        assert {one.info().node_id, two.info().node_id} >= {west}
        assert one.info().node_id != two.info().node_id
    with pytest.raises(shoal.InvalidRequest) as impossible:
        shoal.Sandbox.create(region=WEST, zone="west-1b", client=client)
    assert impossible.value.field == "zone"
    client.cordon(west, why="a test")
    with ThreadPoolExecutor(1) as others:
        try:
            assert until(lambda: refused(client), "nothing starts there").field == "wait_for_capacity"
            creating = others.submit(shoal.Sandbox.create, region=WEST, name="west", client=client)
            why = until(lambda: reason(client), "it waits")
        finally:
            client.uncordon(west)
        assert WEST in why
        with creating.result(60) as waited:
            info = waited.info()
            assert (info.node_id, info.waiting) == (west, None)


def until(look: Callable[[], T | None], what: str) -> T:
    """What it gives in the end."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = look()
        if found is not None:
            return found
        time.sleep(0.1)
    raise AssertionError(f"it never came to be: {what}")


def refused(client: Client) -> shoal.NoCapacity | None:
    """Whether a create that may not wait is refused."""
    try:
        shoal.Sandbox.create(region=WEST, wait_for_capacity=False, client=client).terminate()
    except shoal.NoCapacity as error:
        return error
    return None


def reason(client: Client) -> str | None:
    """Why the sandbox `west` waits."""
    try:
        return shoal.Sandbox.from_name("west", client=client).info().waiting
    except shoal.SandboxNotFound:
        return None
