"""A sandbox's life on a real cluster: how it begins, what ends it, and what is said of it then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

import shoal
from shoal.model import verbs
from shoal.model.access import Quota
from tests.cluster import Cluster
from tests.runsc import IN_GVISOR

pytestmark = pytest.mark.engine

over_both = pytest.mark.usefixtures("both_ways")
"""For what a transport has a part in; what only a node does is the same over each."""


def ended(sandbox: shoal.Sandbox, within: float = 20.0) -> tuple[str, int | None]:
    """(reason, return code) once it has ended."""
    sandbox.wait(timeout=within)
    info = sandbox.info()
    assert info.reason is not None
    return info.reason.value, info.returncode


@over_both
def test_the_first_example(cluster: object) -> None:
    with shoal.Sandbox.create() as sandbox:
        assert sandbox.run("echo hello").stdout == "hello\n"
        assert sandbox.info().state == "running"
    assert ended(sandbox) == ("terminated", 137)


@over_both
def test_its_own_command_ends_it_and_its_output_is_kept(cluster: object) -> None:
    sandbox = shoal.Sandbox.create("sh", "-c", "echo out; echo err >&2; exit 3")
    assert ended(sandbox) == ("completed", 3)
    assert sandbox.returncode == 3
    assert sandbox.poll() == 3
    assert sandbox.stdout.read() == "out\n"
    assert sandbox.stderr.read() == "err\n"
    again = shoal.Sandbox.from_id(sandbox.id)
    assert again.stdout.read() == "out\n"


@over_both
def test_its_command_reads_its_stdin(cluster: object) -> None:
    with shoal.Sandbox.create("sh", "-c", "read line; echo got $line") as sandbox:
        sandbox.stdin.write("it\n")
        assert sandbox.stdout.read() == "got it\n"
        assert ended(sandbox) == ("completed", 0)


def test_a_command_that_dies_by_a_signal(cluster: object) -> None:
    assert ended(shoal.Sandbox.create("sh", "-c", "kill -TERM $$")) == ("completed", -15)


@over_both
def test_lifetime(cluster: object) -> None:
    began = time.monotonic()
    sandbox = shoal.Sandbox.create("sleep", "60", timeout=1.5)
    assert ended(sandbox) == ("timeout", -15)
    assert time.monotonic() - began < 30  # far from the command's 60; what starting it takes is among it
    with pytest.raises(shoal.SandboxEnded) as caught:
        sandbox.run("true")
    assert caught.value.reason == "timeout"


def test_a_command_that_ignores_sigterm_gets_sigkill(cluster: object) -> None:
    sandbox = shoal.Sandbox.create("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done")
    assert sandbox.stdout.read(6) == "ready\n"
    sandbox.terminate()
    assert ended(sandbox) == ("terminated", -9)


def test_a_command_may_end_in_its_own_way_when_asked(cluster: object) -> None:
    sandbox = shoal.Sandbox.create("sh", "-c", "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.05; done")
    assert sandbox.stdout.read(6) == "ready\n"
    sandbox.terminate()
    assert ended(sandbox) == ("terminated", 7)
    assert shoal.Sandbox.from_id(sandbox.id).stdout.read() == "ready\nbye\n"


def test_idleness_ends_it_and_use_keeps_it(cluster: object) -> None:
    sandbox = shoal.Sandbox.create(idle_timeout=4.0)
    for _ in range(3):
        time.sleep(1.4)  # three of them are longer than it may be idle, and one may take two seconds more
        sandbox.run("true")
    assert sandbox.info().state == "running"
    assert ended(sandbox) == ("idle_timeout", 124)


@over_both
def test_a_paused_one_cannot_be_reached_and_goes_on(cluster: object) -> None:
    with shoal.Sandbox.create() as sandbox:
        counting = sandbox.exec("i=0; while :; do echo $((i+=1)) >/n; sleep 0.05; done")
        sandbox.pause()
        sandbox.pause()
        assert sandbox.info().state == "paused"
        with pytest.raises(shoal.FailedPrecondition) as caught:
            sandbox.run("true")
        assert caught.value.state == "paused"
        sandbox.resume()
        assert sandbox.info().state == "running"
        before = sandbox.files.read_text("/n")
        sandbox.run(f"until [ $(cat /n) != {before.strip()} ]; do sleep 0.05; done", check=True)
        assert counting.poll() is None
        sandbox.pause()  # and ends as others do
    assert ended(sandbox) == ("terminated", 137)


@pytest.mark.long
def test_time_in_a_pause_is_no_idleness(cluster: object) -> None:
    with shoal.Sandbox.create(idle_timeout=6) as sandbox:
        sandbox.pause()
        time.sleep(8)
        sandbox.resume()
        sandbox.run("true", check=True)
        assert ended(sandbox, within=30) == ("idle_timeout", 124)


def test_a_running_process_is_use(cluster: object) -> None:
    sandbox = shoal.Sandbox.create(idle_timeout=2.0)  # on a slow machine the process may be a second in starting
    process = sandbox.exec("sleep", "4")
    assert process.wait() == 0
    assert ended(sandbox) == ("idle_timeout", 124)


def test_too_much_memory_is_reported_as_such(cluster: object) -> None:
    hungry = "b = bytearray(400 << 20)\nfor i in range(0, len(b), 4096): b[i] = 1\nimport time; time.sleep(60)"
    own = shoal.Sandbox.create("python3", "-c", hungry, memory=(64, 128))
    assert ended(own) == ("out_of_memory", 137)
    assert "128 MiB" in (own.info().message or "")
    by_exec = shoal.Sandbox.create(memory=(64, 128))
    by_exec.exec("python3", "-c", hungry)
    assert ended(by_exec) == ("out_of_memory", 137)
    with pytest.raises(shoal.SandboxEnded) as caught:
        by_exec.run("true")
    assert caught.value.reason == "out_of_memory"


def test_a_full_disk_is_an_error_inside_and_not_its_end(cluster: object) -> None:
    with shoal.Sandbox.create(disk=64) as sandbox:
        assert sandbox.run("df -m --output=size / | tail -1").stdout.strip() in ("64", "65", "66")
        done = sandbox.run("head -c 200M /dev/zero > /big")
        assert "No space left on device" in done.stderr
        with pytest.raises(shoal.QuotaExceeded):
            sandbox.files.write_bytes("/more", b"x" * (8 << 20))
        assert sandbox.run("rm /big && head -c 32M /dev/zero > /again && echo on").stdout == "on\n"


@over_both
def test_its_environment_and_a_commands_arguments_may_be_large(cluster: object) -> None:
    large = {f"A{number}": "x" * 100_000 for number in range(12)}
    count = 'printf %s "$@" | wc -c; printf %s "$A11" | wc -c'
    with shoal.Sandbox.create(env=large) as sandbox:
        result = sandbox.run(["sh", "-c", count, "sh", *["\1" * 120_000] * 6], env={"A0": None, "A1": None})
        assert result.stdout.split() == ["720000", "100000"]
        if IN_GVISOR:  # which takes more
            return
        with pytest.raises(shoal.InvalidRequest) as caught:
            sandbox.run(["true", *["x" * 120_000] * 8])
        assert caught.value.field == "env"


@over_both
def test_it_has_the_host_name_that_was_asked_for(cluster: object) -> None:
    with shoal.Sandbox.create(hostname="castle") as sandbox:
        assert sandbox.run("hostname").stdout == "castle\n"


def test_waiting_has_a_limit(cluster: object) -> None:
    with shoal.Sandbox.create() as sandbox, pytest.raises(shoal.DeadlineExceeded):
        sandbox.wait(timeout=0.3)


@pytest.fixture(scope="module")
def dev(cluster: Cluster) -> Iterator[str]:
    """An environment beside `main`."""
    admin = cluster.client.transport
    asyncio.run(admin.ask(verbs.create_environment, "dev", Quota()))
    yield "dev"
    asyncio.run(admin.ask(verbs.delete_environment, "dev"))


@over_both
def test_names_are_unique_and_found(dev: str) -> None:
    with shoal.Sandbox.create(name="web", tags={"role": "front"}) as sandbox:
        assert shoal.Sandbox.from_name("web").id == sandbox.id
        with pytest.raises(shoal.AlreadyExists) as caught:
            shoal.Sandbox.create(name="web")
        assert "web" in str(caught.value)
        with shoal.Sandbox.create(name="web", environment=dev) as other:
            assert shoal.Sandbox.from_name("web", environment=dev).id == other.id
    with shoal.Sandbox.create(name="web") as successor:
        assert shoal.Sandbox.from_name("web").id == successor.id


@over_both
def test_an_environment_must_be_there(cluster: object) -> None:
    with pytest.raises(shoal.EnvironmentNotFound, match="shoal environments create elsewhere") as caught:
        shoal.Sandbox.create(environment="elsewhere")
    assert caught.value.fields["field"] == "environment"


@over_both
def test_tags_find_sandboxes(cluster: object) -> None:
    with (
        shoal.Sandbox.create(tags={"run": "7", "n": "1"}) as one,
        shoal.Sandbox.create(tags={"run": "7", "n": "2"}) as two,
    ):
        assert {s.id for s in shoal.Sandbox.list(tags={"run": "7"})} == {one.id, two.id}
        assert [s.id for s in shoal.Sandbox.list(tags={"run": "7", "n": "2"})] == [two.id]
        one.set_tags({"run": "8"})
        assert [s.id for s in shoal.Sandbox.list(tags={"run": "8"})] == [one.id]
    assert shoal.Sandbox.list(tags={"run": "7"}) == []
    assert two.id in {s.id for s in shoal.Sandbox.list(tags={"run": "7"}, include_ended=True)}


@over_both
def test_the_same_key_gives_the_same_sandbox(cluster: object) -> None:
    with shoal.Sandbox.create(idempotency_key="once") as first:
        assert shoal.Sandbox.create(idempotency_key="once").id == first.id
        with pytest.raises(shoal.InvalidRequest, match="idempotency_key"):
            shoal.Sandbox.create(idempotency_key="once", user="root")


@over_both
def test_env_workdir_and_user_hold_for_every_process(cluster: object) -> None:
    with shoal.Sandbox.create(env={"A": "1", "B": "2"}, workdir="/made/for/it", user="1000:1000") as sandbox:
        result = sandbox.run('echo "$A $B $PWD $(id -u):$(id -g)"', env={"B": "3"})
        assert result.stdout == "1 3 /made/for/it 1000:1000\n"
        assert sandbox.run("pwd; id -u", workdir="/", user="0").stdout == "/\n0\n"


def test_a_slot_serves_one_sandbox_after_another_and_carries_nothing_over(cluster: object) -> None:
    seen = set()
    for number in range(3):
        with shoal.Sandbox.create(env={"N": str(number)}, memory=(128, 300 + number)) as sandbox:
            assert sandbox.run("cat /tmp/left 2>/dev/null; env | grep ^N=").stdout == f"N={number}\n"
            sandbox.run("echo secret > /tmp/left")
            seen.add(sandbox.id)
    assert len(seen) == 3


def test_a_warm_container_is_as_fresh_as_any(cluster: object) -> None:
    wanted = {"memory": (128, 333), "env": {"X": "y"}, "workdir": "/w"}
    for _ in range(3):
        with shoal.Sandbox.create(**wanted) as sandbox:  # type: ignore[arg-type]
            assert (
                sandbox.run("echo $X $PWD; ls -A -I .gvisor /tmp /w; touch /tmp/mark /w/mark").stdout
                == "y /w\n/tmp:\n\n/w:\n"
            )
        time.sleep(0.5)  # meanwhile the next one is made


def test_limits_are_the_kernels(cluster: object) -> None:
    script = (
        "import os, pathlib\n"
        "def first(*names):\n"
        "    return next(pathlib.Path(n).read_text().split() for n in names if os.path.exists(n))\n"
        "print(first('/sys/fs/cgroup/memory/memory.limit_in_bytes', '/sys/fs/cgroup/memory.max')[0])\n"
        "print(first('/sys/fs/cgroup/pids/pids.max', '/sys/fs/cgroup/pids.max')[0])\n"
        "c = first('/sys/fs/cgroup/cpu/cpu.cfs_quota_us', '/sys/fs/cgroup/cpu.max')[0]\n"
        "print(int(c) / 100000)\n"
    )
    with shoal.Sandbox.create(memory=(128, 256), cpu=(0.1, 0.5), pids=77) as sandbox:
        processes = "max" if IN_GVISOR else "77"  # it holds them by another limit
        assert sandbox.run(["python3", "-c", script]).stdout.split() == [str(256 << 20), processes, "0.5"]


@over_both
@pytest.mark.anyio
async def test_everything_awaited(cluster: object) -> None:
    async with await shoal.Sandbox.create.aio() as sandbox:
        assert (await sandbox.run.aio("echo hi")).stdout == "hi\n"
        process = await sandbox.exec.aio("sh", "-c", "echo a; echo b")
        assert [line async for line in process.stdout] == ["a\n", "b\n"]
        assert await process.wait.aio() == 0
