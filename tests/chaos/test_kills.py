"""Every process of Shoal's is killed with SIGKILL while it works: no sandbox is lost, no container leaks, calls fail
typed or succeed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import shoal
from tests.cluster import Cluster
from tests.processes import actor_names, actor_pid, eventually, kill, kill_relay

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


@dataclass
class Load:
    """Callers that create, run and terminate until they are told to stop, and what became of each turn."""

    done: int = 0
    failed: list[BaseException] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def turn(self, number: int) -> None:
        while not self._stop.is_set():
            try:
                with shoal.Sandbox.create(tags={"load": "1"}) as sandbox:
                    assert sandbox.run(f"echo {number}").stdout == f"{number}\n"
                self.done += 1
            except BaseException as error:  # noqa: BLE001 - looked at by the test
                self.failed.append(error)

    def wait_for(self, turns: int) -> None:
        """Returns once so many more turns went well."""
        goal = self.done + turns
        eventually(lambda: self.done >= goal, what=f"{turns} turns more")

    def stop(self) -> None:
        self._stop.set()


@contextmanager
def load(callers: int) -> Iterator[Load]:
    """A load in the background; at its end no sandbox of it may live."""
    running = Load()
    threads = [threading.Thread(target=running.turn, args=(n,)) for n in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield running
    finally:
        running.stop()
        for thread in threads:
            thread.join(90)
        assert not any(t.is_alive() for t in threads), "a caller hangs"


def assert_typed(failed: list[BaseException]) -> None:
    for error in failed:
        assert isinstance(error, shoal.ShoalError), repr(error)
        assert error.retryable or isinstance(error, shoal.SandboxEnded), repr(error)


@pytest.fixture
def kept(cluster: object) -> Iterator[list[shoal.Sandbox]]:
    """Sandboxes that must survive whatever is killed, each with a process at work."""
    kept = [shoal.Sandbox.create("sh", "-c", "while :; do sleep 0.2; done", timeout=600) for _ in range(3)]
    for number, sandbox in enumerate(kept):
        sandbox.files.write_text("/mark", str(number))
    yield kept
    for sandbox in kept:
        sandbox.terminate()


def assert_alive(kept: list[shoal.Sandbox]) -> None:
    for number, sandbox in enumerate(kept):
        assert sandbox.files.read_text("/mark") == str(number)
        assert sandbox.run("echo on").stdout == "on\n"
        assert shoal.Sandbox.from_id(sandbox.id).info().state == "running"


def slots_of(sandboxes: list[shoal.Sandbox]) -> list[str]:
    import ray

    held = []
    for name in actor_names("slot-"):
        try:
            actor = ray.get_actor(name, namespace="shoal")
            facts = ray.get(actor.describe.remote())
        except (ValueError, ray.exceptions.RayActorError):
            continue  # it died after it was listed
        if facts.sandbox_id in {s.id for s in sandboxes}:
            held.append(name)
    return held


def test_the_controller(kept: list[shoal.Sandbox]) -> None:
    with load(2) as running:
        running.wait_for(2)
        before = actor_pid("controller")
        kill(before)
        eventually(lambda: actor_pid_or_none("controller") not in (None, before), what="a new controller")
        running.wait_for(2)
    assert_typed(running.failed)
    assert_alive(kept)
    assert shoal.Sandbox.list(tags={"load": "1"}) == []


def test_the_node_actor(kept: list[shoal.Sandbox]) -> None:
    (node,) = actor_names("node-")
    with load(2) as running:
        running.wait_for(1)
        follower = kept[0].exec("sh", "-c", "for i in $(seq 60); do echo $i; sleep 0.05; done")
        kill(actor_pid(node))
        running.wait_for(3)
    assert follower.stdout.read() == "".join(f"{i}\n" for i in range(1, 61)), "the data plane does not care"
    assert_typed(running.failed)
    assert_alive(kept)


@pytest.mark.long
def test_the_node_actor_while_the_sink_is_away(cluster: Cluster) -> None:
    """Neither loses a line: those from before wait on the node's disk, those of meanwhile in the sandbox."""
    sink = Path(urlsplit(cluster.machine.settings.telemetry.sink or "").path)
    away = sink.with_suffix(".away")
    sink.touch()
    sink.rename(away)
    sink.mkdir()  # so that it cannot be written
    sandbox = shoal.Sandbox.create("sh", "-c", "seq 1 2000; read _; seq 2001 4000", client=cluster.client)
    try:
        (node,) = actor_names("node-")
        time.sleep(1)
        pid = actor_pid(node)
        kill(pid)
        sandbox.stdin.write(b"on\n")
        eventually(lambda: actor_pid_or_none(node) not in (None, pid), what="a new node actor")
    finally:
        sink.rmdir()
    sandbox.wait()

    def lines() -> list[str]:
        told = [json.loads(line) for line in sink.read_bytes().splitlines()] if sink.exists() else []
        mine = [each for each in told if each["sandbox_id"] == sandbox.id and each["kind"] != "event"]
        return [*dict.fromkeys(each.get("text", "a gap") for each in mine)]

    eventually(lambda: lines() == [str(number) for number in range(1, 4001)], what="every line, once and in order")


def test_sandbox_actors(kept: list[shoal.Sandbox]) -> None:
    held = slots_of(kept)
    assert len(held) == len(kept)
    for name in held:
        kill(actor_pid(name))
    assert_alive(kept)
    eventually(lambda: len(slots_of(kept)) == len(kept), what="an actor for each again")
    kept[0].terminate()
    assert kept[0].info().reason == "terminated"


@pytest.mark.long
def test_a_sandbox_is_terminated_while_it_changes_actors(cluster: object) -> None:
    sandbox = shoal.Sandbox.create()
    (slot,) = slots_of([sandbox])
    kill(actor_pid(slot))
    began = time.monotonic()
    sandbox.terminate()
    assert time.monotonic() - began < 60  # a slow machine is a while at starting another actor
    assert sandbox.info().reason == "terminated"


@pytest.mark.long
def test_a_timeout_counts_through_the_loss_of_its_actor(cluster: object) -> None:
    sandbox = shoal.Sandbox.create(timeout=6)
    (slot,) = slots_of([sandbox])
    kill(actor_pid(slot))
    began = time.monotonic()
    sandbox.wait(timeout=60)
    assert sandbox.info().reason == "timeout"
    assert time.monotonic() - began < 30  # what it takes to start another actor comes on top, on a slow machine


@pytest.mark.long
def test_idle_slots_that_died_cost_a_caller_nothing(cluster: object) -> None:
    with shoal.Sandbox.create():
        pass
    for name in actor_names("slot-"):
        pid = actor_pid_or_none(name)
        if pid is not None:
            with suppress(ProcessLookupError):  # it was let go of meanwhile
                kill(pid)
    with shoal.Sandbox.create() as sandbox:
        assert sandbox.run("echo ok").stdout == "ok\n"


def test_the_relay(kept: list[shoal.Sandbox]) -> None:
    follower = kept[0].exec("sh", "-c", "for i in $(seq 60); do echo $i; sleep 0.03; done")
    for _ in range(2):
        time.sleep(0.5)
        kill_relay()
    assert follower.stdout.read() == "".join(f"{i}\n" for i in range(1, 61)), "not a byte is lost"
    assert follower.wait() == 0
    assert_alive(kept)


def test_the_driver(cluster: object) -> None:
    """A caller that dies leaves sandboxes that end by their own limits."""
    script = (
        "import shoal, os, signal\n"
        "s = shoal.Sandbox.create('sleep', '600', timeout=4, tags={'of': 'driver'})\n"
        "print(s.id, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    died = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert died.returncode == -9, died.stderr
    sandbox = shoal.Sandbox.from_id(died.stdout.strip())
    info = sandbox.info()
    assert info.state == "running" or info.reason == "timeout"  # where it took long to come here
    sandbox.wait(timeout=30)
    assert sandbox.info().reason == "timeout"


def actor_pid_or_none(name: str) -> int | None:
    try:
        return actor_pid(name)
    except AssertionError:
        return None
