"""Snapshots of memory: sandboxes in gVisor that go on where another one was. Part of `make test-gvisor`."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import shoal
from shoal.actors.names import node_actor_name
from tests import leaks
from tests.cluster import Cluster
from tests.processes import actor_pid, kill

pytestmark = pytest.mark.engine

COUNTING = """
import http.server, threading, time
state = {"count": 0, "big": bytearray(50 << 20)}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        state["count"] += 1
        self.send_response(200); self.end_headers()
        self.wfile.write(str(state["count"]).encode())
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""
ASK = (
    "import urllib.request as r, time\n"
    "for _ in range(100):\n"
    "    try: print(r.urlopen('http://127.0.0.1:8000').read().decode()); break\n"
    "    except OSError: time.sleep(0.1)\n"
)


def asked(sandbox: shoal.Sandbox) -> int:
    return int(sandbox.run(["python3", "-c", ASK], check=True).stdout)


def test_others_go_on_where_one_was(cluster: object) -> None:
    with shoal.Sandbox.create(memory=(128, 512)) as first:
        first.exec("python3", "-c", COUNTING)
        assert [asked(first), asked(first)] == [1, 2]
        first.files.write_text("/root/note", "kept")
        checkpoint = first.snapshot()
        assert asked(first) == 3, "it goes on"
        others = [shoal.Sandbox.restore(checkpoint, memory=(128, 512)) for _ in range(2)]
        try:
            for other in others:
                assert [asked(other), asked(other)] == [3, 4]
                assert other.files.read_text("/root/note") == "kept"
                assert other.run("cat /proc/net/dev").stdout.count("eth0") == 1
            assert asked(first) == 4
            others += first.fork(2, memory=True)
            assert [asked(fork) for fork in others[2:]] == [5, 5]
        finally:
            for other in others:
                other.terminate()


def test_what_has_no_memory_to_give_is_told(cluster: object) -> None:
    with shoal.Sandbox.create(runtime="runc") as sandbox, pytest.raises(shoal.FailedPrecondition) as caught:
        sandbox.snapshot()
    assert caught.value.state == "no_memory"
    with shoal.Sandbox.create() as sandbox:
        checkpoint = sandbox.snapshot(ttl=600)
    with pytest.raises(shoal.InvalidRequest) as refused:
        shoal.Sandbox.create(image=checkpoint.id, runtime="runc")
    assert refused.value.field == "runtime"


def test_a_suspended_one_frees_its_machine_and_goes_on_as_soon_as_it_is_wanted(cluster: object) -> None:
    sandbox = shoal.Sandbox.create(persistent=True, runtime="runsc", memory=(128, 512), timeout=None)
    try:
        sandbox.exec("python3", "-c", COUNTING)
        assert [asked(sandbox), asked(sandbox)] == [1, 2]
        echo = sandbox.exec("python3", "-uc", "for line in iter(input, ''): print(line)")
        echo.stdin.write("one\n")
        lines = iter(echo.stdout)
        assert next(lines) == "one\n"
        sandbox.suspend()
        told = sandbox.info()
        assert (told.state, told.reason, told.memory_state) == ("stopped", "suspended", "saved")
        echo.stdin.write("two\n")
        assert next(lines) == "two\n", "the handle goes on"
        assert (sandbox.info().state, sandbox.info().memory_state) == ("running", "restored")
        assert asked(sandbox) == 3
        sandbox.suspend()
        sandbox.resume()
        assert asked(sandbox) == 4
        sandbox.suspend()
        sandbox.stop()
        assert sandbox.info().memory_state is None
        sandbox.start()
        assert not sandbox.run("pgrep python3").stdout, "it starts from its files"
    finally:
        sandbox.terminate()


def test_a_pool_of_restored_ones_has_an_interpreter_with_its_imports_done(cluster: object) -> None:
    with shoal.Sandbox.create(memory=(128, 512)) as first:
        first.exec("python3", "-c", COUNTING)
        assert asked(first) == 1
        checkpoint = first.snapshot(ttl=600)
    options: dict[str, Any] = {"image": checkpoint.id, "runtime": "runsc", "memory": (128, 512)}
    with shoal.Pool.create("restored", min_ready=1, **options) as pool:
        pool.wait_ready(1, timeout=120)
        with pool.take() as sandbox:
            assert asked(sandbox) == 2
            assert sandbox.info().memory_state == "restored"


@pytest.mark.parametrize("victim", ["node", "slots"])
def test_its_memory_is_kept_whoever_is_killed_while_one_is_suspended_or_wakes(cluster: Cluster, victim: str) -> None:
    before = leaks.look(cluster.file)
    sandbox = shoal.Sandbox.create(persistent=True, runtime="runsc", memory=(128, 512), timeout=None)
    try:
        sandbox.exec("python3", "-c", COUNTING)
        count = asked(sandbox)
        node_id = sandbox.info().node_id
        assert node_id is not None
        for step, delay_s in (
            (sandbox.suspend, 0.15),
            (sandbox.resume, 0.4),
            (sandbox.suspend, 0.4),
            (sandbox.start, 0.7),
        ):
            with ThreadPoolExecutor() as pool:
                work = pool.submit(step)
                time.sleep(delay_s)
                for pid in [actor_pid(node_actor_name(node_id))] if victim == "node" else slot_pids():
                    kill(pid)
            if work.exception() is not None:
                assert isinstance(work.exception(), shoal.ShoalError)
                step()
        count += 1
        assert asked(sandbox) == count, "it went on each time"
    finally:
        sandbox.terminate()
    leaks.assert_none(cluster.file, before)


def slot_pids() -> list[int]:
    import ray._private.state as state

    slots = (actor for actor in state.actors().values() if actor["ActorClassName"] == "SandboxActor")
    return [int(slot["Pid"]) for slot in slots if slot["State"] == "ALIVE"]
