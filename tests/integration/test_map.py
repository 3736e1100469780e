"""`shoal.map` on a real cluster: through Ray and over HTTP, in a Ray task, and when its program is killed."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.client.cluster import Client
from shoal.model.ids import CONTROLLER, NAMESPACE
from shoal.model.rollouts import RolloutInfo

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
TAGS = {"job": "map"}
NAME = "<b>grpo</b> \u202e step 1"

LEAVE = """
ls -A /tmp /dev/shm; cat /proc/[0-9]*/comm | grep -cx sleep
mkdir -p /tmp/a/b; touch /tmp/a/b/c /dev/shm/d
(trap '' TERM; setsid sleep 600 >/dev/null 2>&1 &)
"""

DRIVER = """
import shoal
def hang(sandbox, item):
    print("begun", flush=True)
    sandbox.run("sleep 600")
list(shoal.map(hang, range(10), concurrency=2, ahead=0, owner_lease=5, tags={"job": "map"}))
"""


def under_way(client: Client) -> list[RolloutInfo]:
    return [each for each in client.rollouts(environment="main") if (each.name, each.state.value) == (NAME, "running")]


def living() -> list[str]:
    return [each.id for each in shoal.Sandbox.list(tags=TAGS)]


def test_items_leave_nothing_to_the_next_after_a_reset(both_ways: object) -> None:
    def leave(sandbox: shoal.Sandbox, item: int) -> str:
        return sandbox.run(LEAVE).stdout

    outcomes = list(shoal.map(leave, range(4), concurrency=1, ahead=0, reuse=2, ordered=True, tags=TAGS))
    assert [outcome.unwrap() for outcome in outcomes] == ["/dev/shm:\n\n/tmp:\n0\n"] * 4
    assert len({outcome.sandbox_id for outcome in outcomes}) == 2
    assert living() == []


def test_a_ray_task_may_map(cluster: Any) -> None:
    import ray

    @ray.remote(num_cpus=0)
    def total(items: int) -> int:
        async def double(sandbox: shoal.Sandbox, item: int) -> float:
            return (await shoal.reward.aio(sandbox, f"echo {2 * item}")).score

        outcomes = shoal.map(double, range(items), concurrency=2, tags={"job": "map"})
        return int(sum(outcome.unwrap() for outcome in outcomes))

    assert ray.get(total.remote(4)) == 12
    assert living() == []


def test_others_see_how_far_a_map_is_and_its_rewards(both_ways: Client) -> None:
    """And a controller that is killed meanwhile is told again."""
    import ray

    seen: list[RolloutInfo] = []

    def score(sandbox: shoal.Sandbox, item: int) -> float:
        if item == 1:
            ray.kill(ray.get_actor(CONTROLLER, namespace=NAMESPACE), no_restart=False)
        deadline = time.monotonic() + 20
        while not (told := under_way(both_ways)) or told[0].done < item:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        seen.append(told[0])
        return item / 2

    outcomes = shoal.map(score, range(3), concurrency=1, ahead=0, reuse=3, tags=TAGS, name=NAME)
    assert [outcome.unwrap() for outcome in outcomes] == [0, 0.5, 1]
    assert [(each.state.value, each.done, each.total) for each in seen] == [("running", n, 3) for n in range(3)]
    ended = both_ways.rollout(seen[-1].id)
    assert (ended.state.value, ended.done, ended.mean) == ("done", 3, 0.5)
    assert (list(ended.rewards.items), list(ended.rewards.most)) == ([1, 2, 3], [0, 0.5, 1])
    assert living() == []


def test_a_program_that_is_killed_leaves_no_sandbox(cluster: Any) -> None:
    with subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True, cwd=ROOT) as driver:
        assert driver.stdout is not None
        try:
            assert [driver.stdout.readline() for _ in range(2)] == ["begun\n"] * 2
            assert len(living()) == 2
        finally:
            driver.kill()
    deadline = time.monotonic() + 30
    while living():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_policy_is_trained(cluster: Any, tmp_path: Path) -> None:
    arguments = ["--steps", "2", "--batch", "10", "--parallel", "5", "--png", str(tmp_path / "curve.png")]
    command = [sys.executable, "-m", "examples.training", *arguments]
    trained = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    means = [float(mean) for mean in re.findall(r"^step +\d+  mean ([\d.]+) ", trained.stdout, re.MULTILINE)]
    assert len(means) == 2
    assert means[-1] > means[0]
    if importlib.util.find_spec("matplotlib") is not None:
        assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
