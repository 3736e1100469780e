"""A cluster that scales over pretend regions: real Ray nodes and containers, and what clouds do to them.

They share a cluster, and take turns with what goes wrong.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.cluster.local import joined_file, processes
from shoal.cluster.scaling.files import ScalingFiles
from tests import leaks
from tests.cluster import Machine
from tests.site import Site, make_site

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(900)]

FILE = """
name: test
provider: local
idle_timeout: {idle}
join_timeout: 60
regions:
  eu:
    types:
      small: {{ cpus: 1, memory: 1024, max: 2 }}
  us:
    types:
      small: {{ cpus: 1, memory: 1024, max: 2 }}
"""


class ScaledSite:
    """A site whose cluster scales."""

    def __init__(self, site: Site, idle: float) -> None:
        self.site = site
        self.shoal = site.shoal
        self.file = site.state_dir / "cluster.yaml"
        self.file.write_text(FILE.format(idle=idle))
        self.shoal("cluster", "up", str(self.file))

    def plan(self) -> dict[str, Any]:
        plan: dict[str, Any] = json.loads(self.shoal("cluster", "status", "--json"))
        return plan

    def machines(self, state: str = "running", kind: str = "") -> list[dict[str, Any]]:
        return [m for m in self.plan()["machines"] if m["state"] == state and m["type"].startswith(kind)]

    def until(self, holds: Callable[[], Any], within_s: float = 60.0) -> Any:
        deadline = time.monotonic() + within_s
        while not (found := holds()):
            assert time.monotonic() < deadline, self.plan()
            time.sleep(0.5)
        return found

    def create(self, *options: str) -> str:
        return self.shoal("run", "-d", *options, "shoal/base", "sleep", "600").strip()

    def answers(self, *arguments: str) -> bool:
        """Whether the command succeeds, rather than ending with `Unavailable`: try again."""
        with self.site.start(*arguments) as command:
            _, errors = command.communicate(timeout=400)
        assert command.returncode in (0, 69), errors
        return command.returncode == 0

    def info(self, sandbox_id: str) -> dict[str, Any]:
        found = [each for each in json.loads(self.shoal("ls", "--all", "--json")) if each["id"] == sandbox_id]
        return dict(found[0])

    def fail(self, **regions: dict[str, Any]) -> None:
        """What goes wrong in which region, from now on; nothing where none is named."""
        path = self.site.state_dir / "scaling" / "faults.json"
        path.write_text(json.dumps(regions))

    def kill_node(self, machine_id: str) -> None:
        """Its Ray node, as if the machine had lost its power; containers and all go with the machine's end."""
        joined = joined_file.read(self.site.state_dir / "m" / machine_id.removeprefix("local-"))
        assert joined is not None
        for process in joined.ray:
            os.kill(process.pid, signal.SIGKILL)

    def start_over(self) -> None:
        """No sandboxes, nothing that goes wrong, nothing closed."""
        self.fail()
        left = self.shoal("ls", "-q").split()
        if left:
            self.shoal("rm", *left)
        self.until(lambda: not self.plan()["machines"], 120)


@pytest.fixture(scope="module")
def site(machine: Machine, clusters_engine: str) -> Iterator[ScaledSite]:
    """At the end it is taken down, and nothing is left."""
    for made in make_site(machine, clusters_engine):
        made.environ.update({"SHOAL_API__ENABLED": "false", "SHOAL_NODE__CPU_OVERCOMMIT": "1"})
        yield ScaledSite(made, 8)
        cluster = made.file()
        made.shoal("cluster", "down")
        leaks.assert_nothing_left(cluster)
        assert not (made.state_dir / "scaling").exists()
        assert not (made.state_dir / "m").exists()
        made.shoal("cluster", "status", code=78)


@pytest.fixture
def scaled(site: ScaledSite) -> Iterator[ScaledSite]:
    yield site
    site.start_over()


def test_up_from_nothing_on_a_create_and_down_again_once_idle(scaled: ScaledSite) -> None:
    assert scaled.plan()["machines"] == []
    assert scaled.shoal("run", "--region", "us", "shoal/base", "echo", "hello") == "hello\n"
    (there,) = [m for m in scaled.plan()["machines"] if m["state"] != "ending"]
    assert there["type"] == "us.small"
    scaled.until(lambda: not scaled.plan()["machines"], 120)
    assert scaled.plan()["closed"] == {}, "it was no failed launch"


def test_without_capacity_the_next_region_takes_its_place(scaled: ScaledSite) -> None:
    scaled.fail(eu={"launch": "no_capacity"})
    sandbox = scaled.create("--region", "eu,us")
    scaled.until(lambda: [m["sandboxes"] for m in scaled.machines(kind="us")] == [1])
    assert scaled.info(sandbox)["state"] == "running"
    outcomes = ScalingFiles.below(scaled.site.state_dir).read_fleet().outcomes
    assert {(each.type, each.kind) for each in outcomes} >= {("eu.small", "no_capacity"), ("us.small", None)}


def test_a_node_dies(scaled: ScaledSite) -> None:
    sandbox = scaled.create("--region", "eu")
    (there,) = scaled.machines(kind="eu")
    scaled.kill_node(there["id"])
    scaled.until(lambda: scaled.info(sandbox)["reason"] == "node_lost", 60)
    assert scaled.shoal("run", "--region", "eu", "shoal/base", "echo", "again") == "again\n"
    scaled.until(lambda: there["id"] not in [m["id"] for m in scaled.plan()["machines"]])


def test_a_region_is_lost(scaled: ScaledSite) -> None:
    lost, kept = scaled.create("--region", "eu"), scaled.create("--region", "us")
    (there,) = scaled.machines(kind="eu")
    scaled.fail(eu={"launch": "region_down", "machines": "region_down"})
    scaled.kill_node(there["id"])
    scaled.until(lambda: scaled.info(lost)["reason"] == "node_lost", 60)
    assert scaled.info(kept)["state"] == "running"
    assert scaled.shoal("run", "--region", "eu,us", "shoal/base", "echo", "there") == "there\n"
    plan = scaled.plan()
    assert "eu" in plan["regions_failed"]
    assert there["id"] in [m["id"] for m in plan["machines"]], "as last seen: it may come back"


def test_a_spot_machine_is_drained_before_it_is_taken_away(scaled: ScaledSite) -> None:
    sandbox = scaled.create("--region", "eu")
    (there,) = scaled.machines(kind="eu")
    scaled.fail(eu={"notices": {there["id"]: 60}})
    scaled.until(lambda: scaled.machines("draining", "eu"))
    assert scaled.info(sandbox)["state"] == "running", "as long as the machine runs"
    other = scaled.create("--region", "eu")
    assert scaled.info(other)["node_id"] != scaled.info(sandbox)["node_id"]


def test_machines_that_never_join_are_given_up(scaled: ScaledSite) -> None:
    scaled.fail(eu={"never_join": True})
    assert scaled.shoal("run", "--region", "eu,us", "shoal/base", "echo", "elsewhere") == "elsewhere\n"


def test_what_is_beside_the_head_is_killed_meanwhile(scaled: ScaledSite) -> None:
    cluster = scaled.site.file()
    kept = scaled.create("--region", "us")
    before = scaled.plan()["monitor"]
    marked = processes.of_cluster(cluster.cluster, Path(cluster.temp_dir))
    for process in marked:
        line = " ".join(processes.command_line(process.pid))
        if process.pid == before or "ScalerActor" in line or "ControllerActor" in line:
            os.kill(process.pid, signal.SIGKILL)
    scaled.until(lambda: scaled.answers("run", "--region", "eu", "shoal/base", "true"), 120)
    after = scaled.until(lambda: scaled.plan()["monitor"])
    assert after != before
    assert scaled.info(kept)["state"] == "running"
    scaled.shoal("cluster", "up", str(scaled.file))
    assert scaled.info(kept)["state"] == "running", "nothing is ended by a file that is read again"
