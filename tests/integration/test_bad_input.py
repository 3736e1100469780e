"""Wrong calls on a real cluster: each fails at once with a typed error, and nothing is started or left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import pytest

import shoal
from tests.registry import empty_registry

pytestmark = pytest.mark.engine

over_both = pytest.mark.usefixtures("both_ways")
"""For errors that a transport carries; what only an agent or a node does is the same over each."""

AT_ONCE_S = 15.0
"""Much less than a create waits for room, which is minutes; a busy machine may still take seconds."""


def refused(error: type[shoal.ShoalError], call: Callable[[], Any], *says: str, within: float = AT_ONCE_S) -> Any:
    """Calls, expects `error` soon, with each of `says` in its message."""
    began = time.monotonic()
    with pytest.raises(error) as caught:
        call()
    assert time.monotonic() - began < within
    for text in says:
        assert text in str(caught.value)
    return caught.value


CREATES: list[tuple[str, type[shoal.ShoalError], dict[str, Any], tuple[str, ...]]] = [
    ("an unknown user", shoal.UserNotFound, {"user": "nobody-here"}, ("user", "nobody-here")),
    ("more cpu than any node has", shoal.InvalidRequest, {"cpu": 1000}, ("cpu", "no node")),
    ("a runtime that no node has", shoal.InvalidRequest, {"runtime": "runsc"}, ("runtime",)),
    ("a region that does not exist", shoal.InvalidRequest, {"region": "moon"}, ("region",)),
    ("no lifetime", shoal.InvalidRequest, {"timeout": 0}, ("timeout",)),
]


@over_both
@pytest.mark.parametrize(("error", "asked", "says"), [c[1:] for c in CREATES], ids=[c[0] for c in CREATES])
def test_creates(cluster: object, error: type[shoal.ShoalError], asked: dict[str, Any], says: tuple[str, ...]) -> None:
    refused(error, lambda: shoal.Sandbox.create(**asked), *says)
    assert shoal.Sandbox.list() == []


@over_both
def test_an_unknown_image(cluster: object) -> None:
    with empty_registry() as registry:
        image = f"{registry}/no/such-image:1"
        refused(shoal.ImageNotFound, lambda: shoal.Sandbox.create(image=image), image, within=30.0)
    assert shoal.Sandbox.list() == []


def test_a_registry_that_cannot_be_reached(cluster: object) -> None:
    error = refused(
        shoal.ShoalError, lambda: shoal.Sandbox.create(image="127.0.0.1:9/some/image:1"), "127.0.0.1:9", within=60
    )
    assert isinstance(error, shoal.Unavailable | shoal.ImageNotFound)


@over_both
def test_a_command_that_is_not_there(cluster: object) -> None:
    error = refused(shoal.CommandNotFound, lambda: shoal.Sandbox.create("no-such-program"), "no-such-program")
    assert error.exit_code == 127
    assert shoal.Sandbox.list() == []
    ended = shoal.Sandbox.list(include_ended=True)[0].info()
    assert (ended.reason, ended.returncode) == ("start_failed", 127)


@over_both
def test_a_command_that_cannot_be_executed(cluster: object) -> None:
    error = refused(shoal.CommandNotExecutable, lambda: shoal.Sandbox.create("/etc/passwd"), "/etc/passwd")
    assert error.exit_code == 126


@pytest.fixture(scope="module")
def kept(cluster: object) -> Any:
    with shoal.Sandbox.create() as made:
        yield made


@pytest.fixture
def sandbox(kept: shoal.Sandbox) -> shoal.Sandbox:
    """The module's one sandbox, over the transport that is being tested."""
    return shoal.Sandbox.from_id(kept.id)


@over_both
def test_runs(sandbox: shoal.Sandbox) -> None:
    run = sandbox.run
    assert refused(shoal.CommandNotFound, lambda: run(["nope"]), "nope", "PATH").exit_code == 127
    assert refused(shoal.CommandNotFound, lambda: run(["/bin/nope"]), "/bin/nope").exit_code == 127
    assert refused(shoal.CommandNotExecutable, lambda: run(["/etc/hostname"]), "/etc/hostname").exit_code == 126
    assert refused(shoal.CommandNotExecutable, lambda: run(["/tmp"]), "/tmp").exit_code == 126
    refused(shoal.InvalidRequest, lambda: run([]), "command")
    refused(shoal.InvalidRequest, lambda: run(["true", "a\0b"]), "NUL")
    refused(shoal.InvalidRequest, lambda: run(["echo", "\udcff"]), "UTF-8")
    assert refused(shoal.InvalidRequest, lambda: run(["echo", "x" * 140_000])).field == "argv"
    assert refused(shoal.InvalidRequest, lambda: run(["echo", *["x" * 1000] * 5000])).field == "argv"
    refused(shoal.InvalidRequest, lambda: run("true", workdir="relative"), "absolute")
    refused(shoal.InvalidRequest, lambda: run("true", workdir="/not/there"), "workdir")
    refused(shoal.UserNotFound, lambda: run("true", user="who"), "who")
    refused(shoal.InvalidRequest, lambda: run("true", timeout=-1), "timeout")
    refused(shoal.InvalidRequest, lambda: run("true", env={"A=": "x"}), "env")
    assert run("true").returncode == 0, "and it is still as good as before"


@over_both
def test_files(sandbox: shoal.Sandbox) -> None:
    files = sandbox.files
    refused(shoal.PathNotFound, lambda: files.read_bytes("/no/such/file"), "/no/such/file")
    refused(shoal.InvalidRequest, lambda: files.read_bytes("relative"), "absolute")
    refused(shoal.InvalidRequest, lambda: files.write_text("/tmp/a\0b", "x"), "NUL")
    refused(shoal.InvalidRequest, lambda: files.read_bytes("/tmp"))
    refused(shoal.PathNotFound, lambda: files.list("/nowhere"))
    refused(shoal.AlreadyExists, lambda: files.mkdir("/etc"))
    files.mkdir("/tmp/full")
    files.write_text("/tmp/full/file", "x")
    refused(shoal.FailedPrecondition, lambda: files.remove("/tmp/full"))
    files.remove("/tmp/full", recursive=True)


def test_a_full_disk_is_told_as_such(cluster: object) -> None:
    with shoal.Sandbox.create(memory=(64, 128)) as sandbox:  # its /dev/shm has half of that
        refused(shoal.QuotaExceeded, lambda: sandbox.files.write_bytes("/dev/shm/big", b"x" * (80 << 20)), within=40)
        assert [e.name for e in sandbox.files.list("/dev/shm")] == [], "half a file is not left"


def test_a_file_that_grows_while_it_is_read_has_an_end(sandbox: shoal.Sandbox) -> None:
    sandbox.run("head -c 2000000 /dev/zero > /tmp/grows")
    writer = sandbox.exec("sh", "-c", "while :; do head -c 100000 /dev/zero >> /tmp/grows; done")
    try:
        sizes = [len(sandbox.files.read_bytes("/tmp/grows")) for _ in range(5)]
    finally:
        writer.kill()
    assert sizes == sorted(sizes)
    assert sizes[0] >= 2_000_000


def test_a_process_that_writes_without_end(sandbox: shoal.Sandbox) -> None:
    result = sandbox.run(["yes"], timeout=1.5, max_output=100_000)
    assert (result.timed_out, result.truncated, result.returncode) == (True, True, -9)
    assert len(result.stdout) == 100_000
    process = sandbox.exec("yes")
    assert process.stdout.read(10) == "y\n" * 5
    time.sleep(1)
    used = sandbox.run("cat /proc/1/status | grep VmRSS").stdout.split()[1]
    assert int(used) < 64 * 1024, "unread output waits in the process's pipe, not in the agent's memory"
    process.kill()
    assert process.wait() == -9


def test_one_that_ignores_sigterm(sandbox: shoal.Sandbox) -> None:
    process = sandbox.exec("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done")
    assert process.stdout.read(3) == "up\n"
    process.kill("SIGTERM")
    with pytest.raises(shoal.DeadlineExceeded):
        process.wait(timeout=0.5)
    process.kill()
    assert process.wait(timeout=20) == -9


def test_a_timeout_kills_the_whole_tree(sandbox: shoal.Sandbox) -> None:
    script = "setsid sleep 977 & (setsid sh -c 'sleep 977 & sleep 977' &) ; sleep 977"
    result = sandbox.run(script, timeout=0.7)
    assert result.timed_out
    left = sandbox.run("grep -lz '97[7]' /proc/[0-9]*/cmdline 2>/dev/null").stdout
    assert left == ""


@over_both
def test_an_ended_and_a_never_existing_sandbox(cluster: object) -> None:
    gone = shoal.Sandbox.create()
    gone.terminate()
    error = refused(shoal.SandboxEnded, lambda: gone.run("true"), gone.id)
    assert error.reason == "terminated"
    assert shoal.Sandbox.from_id(gone.id).info().reason == "terminated"
    refused(shoal.SandboxNotFound, lambda: shoal.Sandbox.from_id("sb-neverwas"), "sb-neverwas")
    refused(shoal.SandboxNotFound, lambda: shoal.Sandbox.from_name("never-was"), "never-was")
    refused(shoal.InvalidRequest, lambda: shoal.Sandbox.from_id("../etc"), "sandbox_id")


def test_a_fork_bomb_hurts_only_itself(cluster: object) -> None:
    with shoal.Sandbox.create(pids=64, cpu=(0.1, 0.3)) as bombed, shoal.Sandbox.create() as other:
        bomb = bombed.exec("sh", "-c", "f() { f | f & }; f; sleep 3")
        time.sleep(1.0)
        assert other.run("echo fine").stdout == "fine\n"
        for _ in range(10):
            with contextlib.suppress(shoal.QuotaExceeded):  # there may be no process left to start
                bombed.run("true")
        bomb.kill()
        assert within(30.0, lambda: bombed.run("echo over").stdout) == "over\n"
    assert bombed.info().reason == "terminated"


def within(seconds: float, call: Callable[[], str]) -> str:
    """What it returns, once there is room for its process: shells that cannot fork end, but each needs its turn."""
    end = time.monotonic() + seconds
    while True:
        try:
            return call()
        except shoal.QuotaExceeded:
            assert time.monotonic() < end
            time.sleep(0.2)


def test_a_killed_agent_ends_its_sandbox(cluster: object) -> None:
    import os
    import signal

    from tests.processes import agent_of

    sandbox = shoal.Sandbox.create("sleep", "60")
    os.kill(agent_of(sandbox), signal.SIGKILL)
    sandbox.wait(timeout=20)
    info = sandbox.info()
    assert info.reason == "evicted"
    assert info.state == "failed"
    with pytest.raises(shoal.SandboxEnded):
        sandbox.run("true")
