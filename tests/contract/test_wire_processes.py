"""Processes, through a real relay and a real agent."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal.model import errors, ids
from shoal.wire.agent import Agent, Connection, Start, Terminal
from tests.contract.relay_fixture import AgentLab, agent_lab

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


@pytest.fixture
async def sandbox() -> AsyncIterator[AgentLab]:
    async with agent_lab() as made:
        yield made


@pytest.fixture
async def agent(sandbox: AgentLab) -> AsyncIterator[Agent]:
    async with sandbox.agent() as made:
        yield made


def command(*argv: str, **more: object) -> Start:
    return Start(ids.new_process_id(), argv, **more)  # type: ignore[arg-type]


def shell(line: str, **more: object) -> Start:
    return command("/bin/sh", "-c", line, **more)


async def everything(agent: Agent, process_id: str, fd: int = 1) -> bytes:
    return b"".join([chunk async for chunk in agent.output(process_id, fd)])


async def test_ping(agent: Agent) -> None:
    pong = await agent.ping()
    assert pong["uptime_ms"] >= 0
    assert pong["processes"] == 0


# Admission


async def test_tokens(sandbox: AgentLab) -> None:
    good = sandbox.token()
    for bad in (good[:-2], "x" + good, "nonsense", sandbox.token(ttl_s=-5)):
        with pytest.raises(errors.Unauthenticated):
            await Connection.open(sandbox.relay.address, bad)
    with pytest.raises(errors.NotFound):
        await Connection.open(sandbox.relay.address, sandbox.token(key="c-none"))


async def test_scopes(sandbox: AgentLab) -> None:
    connection = await Connection.open(sandbox.relay.address, sandbox.token(scopes=("files",)), wait_s=5)
    agent = Agent(connection)
    try:
        assert (await agent.stat("/")).kind == "dir"
        for call in (agent.run(command("true")), agent.shutdown(0), agent.configure({"A": "b"})):
            with pytest.raises(errors.PermissionDenied):
                await call
    finally:
        connection.close()
        await connection.wait_closed()


async def test_no_agent(sandbox: AgentLab) -> None:
    await sandbox.relay.add("c-empty")
    started = time.monotonic()
    with pytest.raises(errors.Unavailable):
        await Connection.open(sandbox.relay.address, sandbox.token(key="c-empty"), wait_s=0.3)
    assert 0.2 < time.monotonic() - started < 20  # a machine may stand still for seconds


# run


async def test_run(agent: Agent) -> None:
    start = shell("cat; echo err >&2; exit 3")
    result = await agent.run(start, input=b"\x00\xff in")
    assert (result.id, result.exit, result.stdout, result.stderr) == (start.id, 3, b"\x00\xff in", b"err\n")
    assert not result.timed_out
    assert not result.truncated
    assert 0 < result.duration_s < 10


async def test_run_in_its_circumstances(agent: Agent) -> None:
    result = await agent.run(
        shell(
            'echo "$A-$B-$PWD-$(id -u):$(id -g)-$(ulimit -n)"',
            env={"A": "é", "B": None},
            workdir="/usr",
            user="65534:65533",
            limits={"nofile": 77},
        )
    )
    assert result.stdout.decode() == "é--/usr-65534:65533-77\n"


async def test_configure_sets_the_defaults(sandbox: AgentLab, agent: Agent) -> None:
    place = sandbox.directory / "made"
    await agent.configure({"COLOUR": "blue"}, place, "")
    result = await agent.run(shell('echo "$COLOUR $PWD"'))
    assert result.stdout.decode() == f"blue {place}\n"


async def test_run_killed_by_a_signal(agent: Agent) -> None:
    assert (await agent.run(shell("kill -TERM $$"))).exit == -signal.SIGTERM


async def test_run_that_takes_too_long_dies_with_its_tree(agent: Agent) -> None:
    started = time.monotonic()
    result = await agent.run(shell("trap '' TERM; echo on; setsid sleep 77 & sleep 77 & wait", timeout_s=0.5))
    assert (result.exit, result.timed_out, result.stdout) == (-signal.SIGKILL, True, b"on\n")
    assert time.monotonic() - started < 20  # not 77, and not for want of a machine that goes on
    rest = await agent.run(shell("grep -al '[s]leep.77' /proc/[0-9]*/cmdline; true"))
    assert rest.stdout == b""


async def test_run_keeps_so_much_output(agent: Agent) -> None:
    line = "head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2"
    result = await agent.run(shell(line), max_output=1000)
    assert (result.exit, len(result.stdout), len(result.stderr), result.truncated) == (0, 1000, 1000, True)
    result = await agent.run(shell(line), max_output=0)
    assert (result.stdout, result.stderr, result.truncated) == (b"", b"", True)
    result = await agent.run(shell(line), max_output=300_000)
    assert (len(result.stdout), len(result.stderr), result.truncated) == (300_000, 300_000, False)


async def test_run_with_much_input_and_output(agent: Agent) -> None:
    data = os.urandom(5_000_000)
    result = await agent.run(command("cat"), input=data)
    assert result.stdout == data


async def test_run_that_does_not_read_its_input(agent: Agent) -> None:
    result = await asyncio.wait_for(agent.run(command("true"), input=bytes(20_000_000)), 10)
    assert result.exit == 0


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (command("no-such-program"), errors.CommandNotFound),
        (command("/no/such/program"), errors.CommandNotFound),
        (command("/etc/passwd"), errors.CommandNotExecutable),
        (command("/etc"), errors.CommandNotExecutable),
        (command("true", user="nobody-at-all"), errors.UserNotFound),
        (command("true", workdir="/no/such/place"), errors.ShoalError),
    ],
)
async def test_run_of_what_cannot_be_run(agent: Agent, start: Start, expected: type[errors.ShoalError]) -> None:
    with pytest.raises(expected):
        await agent.run(start)
    assert (await agent.ps()) == [] or all(not row["running"] for row in await agent.ps())


async def test_a_request_too_large_for_a_frame(agent: Agent) -> None:
    with pytest.raises(errors.InvalidRequest):
        await agent.run(command("true", *["\x01" * 100_000] * 30))
    with pytest.raises(errors.InvalidRequest):  # by the kernel
        await agent.run(command("true", *["x" * 130_000] * 17, env={f"V{i}": "y" * 20_000 for i in range(20)}))
    assert (await agent.run(command("true"))).exit == 0


async def test_the_same_run_twice_runs_once(sandbox: AgentLab, agent: Agent) -> None:
    log = sandbox.directory / "log"
    start = shell(f"echo ran >> {log}; sleep 0.3; echo done")
    async with sandbox.agent() as other:
        first, second = await asyncio.gather(agent.run(start), other.run(start))
    third = await agent.run(start)
    assert first.stdout == second.stdout == third.stdout == b"done\n"
    assert first.exit == second.exit == third.exit == 0
    assert log.read_text() == "ran\n"


async def test_many_runs_at_once(agent: Agent) -> None:
    results = await asyncio.gather(*[agent.run(shell(f"echo {number}; exit {number}")) for number in range(100)])
    assert [(result.exit, result.stdout) for result in results] == [(n, f"{n}\n".encode()) for n in range(100)]


# exec


async def test_exec_and_follow(agent: Agent) -> None:
    start = shell("echo out; echo err >&2; cat; exit 5")
    pid = await agent.exec(start)
    assert pid > 1
    stdin = await agent.stdin(start.id)
    await stdin.write(b"one ")
    await stdin.write(b"two")
    await stdin.close()
    assert stdin.offset == 7
    assert await everything(agent, start.id) == b"out\none two"
    assert await everything(agent, start.id, 2) == b"err\n"
    ended = await agent.wait(start.id)
    assert (ended.exit, ended.timed_out) == (5, False)
    (row,) = [row for row in await agent.ps() if row["id"] == start.id]
    assert (row["pid"], row["running"], row["exit"], row["argv"]) == (pid, False, 5, list(start.argv))


async def test_the_same_exec_twice_starts_once(sandbox: AgentLab, agent: Agent) -> None:
    log = sandbox.directory / "log"
    start = shell(f"echo ran >> {log}; cat")
    assert await agent.exec(start) == await agent.exec(start)
    stdin = await agent.stdin(start.id)
    await stdin.close()
    await agent.wait(start.id)
    assert log.read_text() == "ran\n"


async def test_exec_with_merged_output_and_no_input(agent: Agent) -> None:
    start = shell("cat; echo out; echo err >&2")
    await agent.exec(start, merge_stderr=True, stdin=False)
    assert await everything(agent, start.id) == b"out\nerr\n"


async def test_output_from_an_offset(agent: Agent) -> None:
    start = shell("printf 0123456789")
    await agent.exec(start)
    await agent.wait(start.id)
    output = await agent.output(start.id, 1, 4)
    assert b"".join([chunk async for chunk in output]) == b"456789"
    assert output.offset == 10


async def test_output_is_live(agent: Agent) -> None:
    start = shell("echo ready; read line; echo got $line")
    await agent.exec(start)
    output = await agent.output(start.id, 1)
    assert await anext(output) == b"ready\n"
    stdin = await agent.stdin(start.id)
    await stdin.write(b"this\n")
    assert await anext(output) == b"got this\n"
    with pytest.raises(StopAsyncIteration):
        await anext(output)


async def test_a_terminal(agent: Agent) -> None:
    start = shell("stty size; read line; stty size; tty >/dev/null && echo terminal")
    await agent.exec(start, pty=Terminal())
    output = await agent.output(start.id, 1)
    seen = await anext(output)
    while b"\n" not in seen:  # the terminal writes a line's end by itself
        seen += await anext(output)
    assert seen == b"24 80\r\n"
    await agent.resize(start.id, 50, 132)
    stdin = await agent.stdin(start.id)
    await stdin.write(b"\n")
    seen = b"".join([chunk async for chunk in output])
    assert b"50 132\r\n" in seen
    assert b"terminal\r\n" in seen


async def test_signals(agent: Agent) -> None:
    start = shell("sleep 60 & echo ready; wait")
    await agent.exec(start)
    output = await agent.output(start.id, 1)
    assert await anext(output) == b"ready\n"
    await agent.signal(start.id, signal.SIGTERM)
    assert (await agent.wait(start.id)).exit == -signal.SIGTERM
    await agent.signal(start.id, signal.SIGKILL, tree=True)


async def test_what_is_not_there(agent: Agent) -> None:
    for call in (
        agent.wait("p-none"),
        agent.signal("p-none", 9),
        agent.resize("p-none", 1, 1),
        agent.stdin("p-none"),
        anext(agent.output("p-none", 1)),
    ):
        with pytest.raises(errors.ProcessNotFound):
            await call


async def test_stdin_goes_on_where_it_was_left(agent: Agent) -> None:
    start = command("cat")
    await agent.exec(start)
    first = await agent.stdin(start.id)
    await first.write(b"0123")
    output = await agent.output(start.id, 1)
    assert await anext(output) == b"0123"
    first.detach()
    second = await agent.stdin(start.id, 2)
    assert second.offset == 4
    await second.write(b"23456")
    await second.close()
    assert b"".join([chunk async for chunk in output]) == b"456"


async def test_input_to_a_process_that_ended(agent: Agent) -> None:
    start = command("true")
    await agent.exec(start)
    await agent.wait(start.id)

    async def write_on() -> None:
        stdin = await agent.stdin(start.id)
        while True:
            await stdin.write(b"x")
            await asyncio.sleep(0.01)

    with pytest.raises(errors.FailedPrecondition):
        await asyncio.wait_for(write_on(), 5)


# Pressure


async def test_a_writer_without_end_waits_for_its_reader(sandbox: AgentLab, agent: Agent) -> None:
    await agent.run(command("true"))
    before = sandbox.rss()
    start = command("yes", "0123456789abcde")
    await agent.exec(start)
    output = await agent.output(start.id, 1)
    total = 0
    async for chunk in output:
        total += len(chunk)
        if total > 5 << 20:
            break
    await asyncio.sleep(0.3)  # nobody reads: all stands still
    held = output.offset
    async with sandbox.agent() as other:  # another stream is not held up
        assert (await asyncio.wait_for(agent.run(command("echo", "hi")), 5)).stdout == b"hi\n"
        assert (await asyncio.wait_for(other.ping(), 5))["processes"] >= 1
    assert sandbox.rss() - before < 24 << 20
    async for chunk in output:
        assert len(chunk) <= 1 << 20
        assert chunk.count(b"0123456789abcde\n") >= len(chunk) // 16 - 1
        if output.offset > held + (5 << 20):
            break
    await output.aclose()
    await agent.signal(start.id, signal.SIGKILL, tree=True)
    assert (await agent.wait(start.id)).exit == -signal.SIGKILL


async def test_output_of_many_megabytes_is_whole(agent: Agent) -> None:
    start = shell("i=0; while [ $i -lt 40 ]; do seq 100000 110000; i=$((i+1)); done")
    await agent.exec(start)
    data = await everything(agent, start.id)
    assert data == b"".join(b"%d\n" % number for number in range(100000, 110001)) * 40


async def test_tail_drops_the_oldest_where_nobody_reads(agent: Agent) -> None:
    start = shell("head -c 3000000 /dev/zero; printf end")
    await agent.exec(start, tail=True)
    assert (await asyncio.wait_for(agent.wait(start.id), 10)).exit == 0
    output = await agent.output(start.id, 1)
    data = b"".join([chunk async for chunk in output])
    assert data.endswith(b"end")
    assert output.offset == 3_000_003
    ((begin, end),) = output.gaps
    assert begin == 0
    # What is still in the pipe when the reader comes, up to all that it has room for, adds to what is held for it.
    assert len(data) == 3_000_003 - end <= (1 << 20) + (64 << 10)


async def test_output_tells_what_there_is(agent: Agent) -> None:
    start = shell("printf 0123456789; cat")
    await agent.exec(start)
    async with agent.output(start.id, 1) as first:
        assert await anext(first) == b"0123456789"
    async with agent.output(start.id, 1, 4, tell=True) as output:
        assert (output.held, output.offset) == ((4, 10), 4)
        assert await anext(output) == b"456789"
    with pytest.raises(errors.InvalidRequest):
        await agent.output(start.id, 1, 11, tell=True)


async def test_nobody_waits_for_a_reader_that_peeks(agent: Agent, tmp_path: Path) -> None:
    go = tmp_path / "go"
    start = shell(f"printf ready; while [ ! -e {go} ]; do sleep 0.01; done; head -c 5000000 /dev/zero; printf end")
    await agent.exec(start, tail=True)
    async with agent.output(start.id, 1, peek=True) as peeking:
        assert await anext(peeking) == b"ready"
        go.touch()
        assert (await asyncio.wait_for(agent.wait(start.id), 10)).exit == 0
        data = b"".join([chunk async for chunk in peeking])
        assert data.endswith(b"end")
        assert peeking.offset == 5_000_008
        assert 5 + len(data) + sum(end - begin for begin, end in peeking.gaps) == 5_000_008
        assert peeking.gaps
    with pytest.raises(errors.InvalidRequest) as caught:
        agent.output(start.id, 1, peek=1)  # type: ignore[arg-type]
    assert caught.value.field == "peek"


async def test_input_that_is_refused_is_never_taken_for_input_that_arrived(agent: Agent) -> None:
    start = shell("exec <&-; echo closed; sleep 100")
    await agent.exec(start)
    assert await anext(agent.output(start.id, 1)) == b"closed\n"

    async def feed() -> None:
        stream = await agent.stdin(start.id)
        await stream.write(b"lost")
        await stream.drain()

    for _ in range(50):
        with pytest.raises(errors.FailedPrecondition):
            await feed()


# The sandbox as a whole


async def test_idle(agent: Agent) -> None:
    start = command("sleep", "0.4")
    started = time.monotonic()
    await agent.exec(start)
    idle = await asyncio.wait_for(agent.idle(0.3), 20)
    assert time.monotonic() - started > 0.6
    assert idle >= 0.3


async def test_shutdown(sandbox: AgentLab, agent: Agent) -> None:
    start = shell("trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done")
    await agent.exec(start)
    output = await agent.output(start.id, 1)
    assert await anext(output) == b"ready\n"
    await agent.exec(shell("trap '' TERM; while :; do sleep 1; done"))
    try:
        await asyncio.wait_for(agent.shutdown(0.5), 10)
    except errors.Unavailable:
        pass  # it was gone before its answer was through
    await asyncio.wait_for(agent.connection.wait_closed(), 5)
    await asyncio.wait_for(sandbox.gone(), 5)
