"""Processes: started, fed, read, resumed."""

from __future__ import annotations

import asyncio
import inspect
import signal
import time
from typing import Any

import pytest

import shoal
from shoal.client import retrying_agent
from shoal.client.output import MAX_LINE, ByteSource, bytes_output, text_output
from shoal.client.signals import signal_number
from shoal.model.errors import Unavailable
from shoal.wire.agent import Terminal
from tests.unit.client_lab import ClientLab

BROKEN = "connection to the sandbox was lost"


@pytest.fixture
def lab() -> ClientLab:
    return ClientLab()


class Pieces(ByteSource):
    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)

    async def next(self) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""

    async def next_within(self, timeout: float) -> bytes | None:
        piece = await self.next()
        if piece == b"-":  # a pause
            return None
        return piece

    async def close(self) -> None:
        self.pieces.clear()


# run


def test_run_gathers_all(lab: ClientLab) -> None:
    with lab.sandbox() as sandbox:
        result = sandbox.run(["cat"], input="in\n")
        assert (result.returncode, result.stdout, result.stderr) == (0, "in\n", "")
        assert (result.timed_out, result.truncated) == (False, False)
        assert 0 <= result.duration < 5
        assert sandbox.run("echo a line").stdout == "a line\n"
        assert sandbox.run(["echo", "x"], text=False).stdout == b"x\n"
        assert sandbox.run("echo 0123456789", max_output=4).truncated
        assert len(lab.fake.named("run")) == 4
    assert lab.fake.named("run")[1].argv == ("/bin/sh", "-c", "echo a line")


def test_run_can_insist_on_success(lab: ClientLab) -> None:
    with lab.sandbox() as sandbox:
        assert sandbox.run("false").returncode == 1
        with pytest.raises(shoal.CommandFailed) as caught:
            sandbox.run(["false"], check=True)
        assert (caught.value.returncode, caught.value.stdout, caught.value.stderr) == (1, "", "")
        assert sandbox.run("true", check=True).returncode == 0


def test_a_run_that_takes_too_long_is_killed(lab: ClientLab) -> None:
    with lab.sandbox() as sandbox:
        result = sandbox.run(["sleep", "60"], timeout=0.05)
        assert (result.returncode, result.timed_out) == (-9, True)
        with pytest.raises(shoal.DeadlineExceeded) as caught:
            sandbox.run(["sleep", "60"], timeout=0.05, check=True)
        assert caught.value.fields == {"stdout": "", "stderr": ""}


@pytest.mark.parametrize(
    ("command", "options", "error", "field"),
    [
        ([["nothing"]], {}, shoal.CommandNotFound, "argv"),
        ([], {}, shoal.InvalidRequest, "command"),
        ([[]], {}, shoal.InvalidRequest, "command"),
        ([5], {}, shoal.InvalidRequest, "command"),
        ([b"true"], {}, shoal.InvalidRequest, "command"),
        ([[1]], {}, shoal.InvalidRequest, "argv"),
        (["true", 1], {}, shoal.InvalidRequest, "argv"),
        ([["a\0b"]], {}, shoal.InvalidRequest, "argv"),
        (["echo", "\ud800"], {}, shoal.InvalidRequest, "argv"),
        (["true"], {"workdir": "here"}, shoal.InvalidRequest, "workdir"),
        (["true"], {"workdir": 5}, shoal.InvalidRequest, "workdir"),
        (["true"], {"timeout": 0}, shoal.InvalidRequest, "timeout"),
        (["true"], {"timeout": "1"}, shoal.InvalidRequest, "timeout"),
        (["true"], {"env": {"A": "\0"}}, shoal.InvalidRequest, "env"),
        (["true"], {"env": ""}, shoal.InvalidRequest, "env"),
        (["true"], {"user": 0}, shoal.InvalidRequest, "user"),
        (["true"], {"input": 5}, shoal.InvalidRequest, "input"),
        (["true"], {"merge_stderr": 1}, shoal.InvalidRequest, "merge_stderr"),
        (["true"], {"pty": "yes"}, shoal.InvalidRequest, "pty"),
        (["true"], {"echo": False}, shoal.InvalidRequest, "echo"),
        (["true"], {"term": "dumb"}, shoal.InvalidRequest, "term"),
        (["true"], {"pty": True, "term": 5}, shoal.InvalidRequest, "term"),
    ],
    ids=str,
)
def test_bad_arguments_are_told_by_field_at_once(
    lab: ClientLab, command: list[Any], options: dict[str, Any], error: type[shoal.InvalidRequest], field: str
) -> None:
    with lab.sandbox() as sandbox:
        for call in (sandbox.run, sandbox.exec):
            if options.keys() <= {*inspect.signature(call).parameters}:
                with pytest.raises(error) as caught:
                    call(*command, **options)
                assert caught.value.field == field


# exec


def test_a_process_is_fed_and_read_line_by_line(lab: ClientLab) -> None:
    with lab.sandbox() as sandbox, sandbox.exec("cat") as process:
        process.stdin.write("one\ntwo\nthr")
        assert process.stdout.readline() == "one\n"
        assert next(process.stdout) == "two\n"
        assert process.poll() is None
        process.stdin.write(b"ee")
        process.stdin.close()
        process.stdin.close()
        assert list(process.stdout) == ["three"]
        assert process.stdout.read() == ""
        assert process.stderr.read() == ""
        assert process.wait() == 0
        assert (process.returncode, process.timed_out) == (0, False)
        with pytest.raises(shoal.FailedPrecondition) as caught:
            process.stdin.write("more")
        assert caught.value.state == "closed"


def test_awaited_too(lab: ClientLab) -> None:
    async def use() -> list[str]:
        async with (
            await shoal.Sandbox.create.aio(client=lab.client) as sandbox,
            await sandbox.exec.aio("cat") as process,
        ):
            await process.stdin.write.aio("a\nb\n")
            await process.stdin.close.aio()
            return [line async for line in process.stdout]

    assert asyncio.run(use()) == ["a\n", "b\n"]


def test_one_process_is_used_blocking_and_in_several_loops(lab: ClientLab) -> None:
    with lab.sandbox() as sandbox:
        process = sandbox.exec("cat")
        process.stdin.write("1\n")
        assert process.stdout.readline() == "1\n"

        async def more(text: str) -> str:
            await process.stdin.write.aio(text)
            return await process.stdout.readline.aio()

        assert asyncio.run(more("2\n")) == "2\n"
        assert asyncio.run(more("3\n")) == "3\n"
        process.stdin.close()
        assert process.stdout.read() == ""


def test_it_is_found_again_by_id_with_all_its_output(lab: ClientLab) -> None:
    with lab.sandbox() as sandbox:
        first = sandbox.exec("cat")
        first.stdin.write("one\n")
        assert first.stdout.read(2) == "on"
        again = shoal.Sandbox.from_id(sandbox.id, client=lab.client).process(first.id)
        again.stdin.write("two\n")  # goes behind what was written before
        again.stdin.close()
        assert again.wait() == 0
        assert again.stdout.read() == "one\ntwo\n"
        assert first.stdout.read() == "e\ntwo\n"
        infos = {info.id: info for info in sandbox.processes()}
        assert (infos[first.id].argv, infos[first.id].running) == (("/bin/sh", "-c", "cat"), False)
        with pytest.raises(shoal.ProcessNotFound):
            sandbox.process("p-none").wait()


def test_a_context_manager_kills_what_still_runs(lab: ClientLab) -> None:
    with lab.sandbox() as sandbox:
        with sandbox.exec("sleep", "60") as process:
            pass
        assert process.wait(timeout=5) == -9
        process.kill()  # of one that has ended: nothing happens
        ended = sandbox.exec("sleep", "60")
        ended.terminate()
        assert ended.wait() == -15
        assert ended.poll() == -15


def test_waiting_has_a_limit_and_a_timeout_ends_it(lab: ClientLab) -> None:
    with lab.sandbox() as sandbox:
        with (
            sandbox.exec("sleep", "60") as process,
            pytest.raises(shoal.DeadlineExceeded),
        ):
            process.wait(timeout=0.05)
        limited = sandbox.exec("sleep", "60", timeout=0.05)
        assert limited.wait() == -9
        assert limited.timed_out


@pytest.mark.parametrize("call", ["run", "exec"])
def test_a_command_is_a_line_or_a_list_or_arguments(lab: ClientLab, call: str) -> None:
    with lab.sandbox() as sandbox:
        for command in (["echo a  b"], [["echo", "a  b"]], [("echo", "a  b")], ["echo", "a  b"]):
            getattr(sandbox, call)(*command)
        argvs = [start.argv for start in lab.fake.named(call)]
        assert [list(argv) for argv in argvs] == [["/bin/sh", "-c", "echo a  b"], *[["echo", "a  b"]] * 3]


@pytest.mark.parametrize(
    ("options", "terminal"),
    [
        ({}, None),
        ({"pty": True}, Terminal(24, 80)),
        ({"pty": (10, 20), "echo": False, "term": "dumb"}, Terminal(10, 20, False, "dumb")),
    ],
    ids=str,
)
def test_a_terminal_has_a_size_and_options(
    lab: ClientLab, monkeypatch: pytest.MonkeyPatch, options: Any, terminal: Any
) -> None:
    from tests.fakes.agent import FakeAgent

    seen: list[Any] = []

    async def exec(self: FakeAgent, start: Any, *, pty: Any, merge_stderr: bool) -> int:
        seen.append(pty)
        return 1

    monkeypatch.setattr(FakeAgent, "exec", exec)
    with lab.sandbox() as sandbox:
        sandbox.exec("cat", **options)
        with pytest.raises(shoal.InvalidRequest) as caught:
            sandbox.exec("cat", pty=(1, 2, 3))  # type: ignore[call-overload]
        assert caught.value.field == "pty"
    assert seen == [terminal]


@pytest.mark.parametrize("value", [9, "KILL", "sigkill", signal.SIGKILL], ids=str)
def test_signals_by_name_and_number(value: Any) -> None:
    assert signal_number(value) == 9


@pytest.mark.parametrize("value", [0, -1, 65, True, 1.5, "NONE", None, []], ids=str)
def test_what_is_no_signal_is_refused(value: Any) -> None:
    with pytest.raises(shoal.InvalidRequest) as caught:
        signal_number(value)
    assert caught.value.field == "signal"


# Broken connections


def test_a_run_goes_on_after_a_broken_connection_and_runs_once(lab: ClientLab) -> None:
    with lab.sandbox() as sandbox:
        lab.fake.fail_next("run", Unavailable(BROKEN))
        lab.fake.fail_next("agent", Unavailable("the relay cannot be reached"))
        assert sandbox.run("echo once").stdout == "once\n"
        ids = [start.id for start in lab.fake.named("run")]
        assert len(ids) == 2
        assert len(set(ids)) == 1


def test_output_goes_on_where_it_was(lab: ClientLab) -> None:
    with lab.sandbox() as sandbox:
        process = sandbox.exec("cat")
        process.stdin.write("abc")
        assert process.stdout.read(3) == "abc"
        lab.fake.fail_next("output", Unavailable(BROKEN))
        process.stdin.write("def")
        process.stdin.close()
        assert process.stdout.read() == "def"
        assert 3 in lab.fake.named("output")


def test_input_is_neither_lost_nor_doubled(lab: ClientLab) -> None:
    with lab.sandbox() as sandbox:
        process = sandbox.exec("cat")
        process.stdin.write("ab")
        lab.fake.fail_next("write_stdin", Unavailable(BROKEN))  # it arrived, but nobody said so
        process.stdin.write("cd")
        lab.fake.fail_next("stdin", Unavailable(BROKEN))
        lab.fake.fail_next("close_stdin", Unavailable(BROKEN))
        process.stdin.write("ef")
        process.stdin.close()
        assert process.stdout.read() == "abcdef"


def test_waiting_goes_on_after_a_broken_connection(lab: ClientLab) -> None:
    with lab.sandbox() as sandbox:
        process = sandbox.exec("sleep", "0.05")
        lab.fake.fail_next("wait_process", Unavailable(BROKEN))
        assert process.wait() == 0


def test_patience_has_an_end(lab: ClientLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying_agent.Patience.__init__, "__defaults__", (0.2, __import__("time").monotonic))
    with lab.sandbox() as sandbox:
        for _ in range(100):
            lab.fake.fail_next("run", Unavailable(BROKEN))
        with pytest.raises(shoal.Unavailable) as caught:
            sandbox.run("true")
        assert caught.value.retryable


def test_what_must_not_happen_twice_is_sent_once(lab: ClientLab) -> None:
    with lab.sandbox() as sandbox:
        sandbox.files.write_text("/f", "a")
        lab.fake.fail_next("write", Unavailable(BROKEN))
        with pytest.raises(shoal.Unavailable) as caught:
            sandbox.files.append("/f", "b")
        assert not caught.value.retryable
        assert sandbox.files.read_text("/f") == "a"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def _fails(patience: retrying_agent.Patience, clock: Clock, after_s: float, *, connected: bool) -> bool:
    if connected:
        patience.working()
    clock.now += after_s
    try:
        await patience.after(Unavailable(BROKEN))
    except Unavailable:
        return True
    return False


@pytest.mark.parametrize(
    ("story", "gives_up_at"),
    [
        ([(16, False)], 0),  # it took all the time just to get no connection
        ([(16, True), (16, False)], 1),  # it worked for long, then broke, then nothing
        ([(3600, True), (3600, True), (3600, True)], None),  # hours of waiting, broken now and then
        ([(0.1, True)] * 200, 150),  # it connects, and breaks, and connects
    ],
    ids=["none", "broke", "hours", "flaps"],
)
def test_patience_counts_trouble_not_time(
    monkeypatch: pytest.MonkeyPatch, story: list[tuple[float, bool]], gives_up_at: int | None
) -> None:
    async def no_sleep(delay: float) -> None:
        return None

    monkeypatch.setattr(retrying_agent.asyncio, "sleep", no_sleep)
    clock = Clock()
    patience = retrying_agent.Patience(15.0, clock)

    async def tell() -> int | None:
        for step, (after_s, connected) in enumerate(story):
            if await _fails(patience, clock, after_s, connected=connected):
                return step
        return None

    found = asyncio.run(tell())
    assert found == gives_up_at or (found is not None and gives_up_at is not None and abs(found - gives_up_at) < 15)


# Reading


def test_text_is_decoded_across_pieces_and_what_is_not_text_is_replaced() -> None:
    euro = "€".encode()
    assert text_output(Pieces(b"a" + euro[:1], euro[1:2], euro[2:] + b"\n\xff", euro[:2])).read() == "a€\n��"
    assert list(text_output(Pieces(b"a\r\n", b"b", b"c\n\n", b"d"))) == ["a\r\n", "bc\n", "\n", "d"]


def test_what_is_there_is_read_and_the_end_is_no_timeout() -> None:
    output = text_output(Pieces(b"na", "mé: ".encode()[:-3], b"-", "é: ".encode()[1:], b"-"))
    assert output.read_available() == "na"
    assert output.read_available(timeout=5) == "m"
    assert (output.read_available(timeout=0), output.at_end) == ("", False)  # half a character
    assert output.read_available(timeout=5) == "é: "
    assert (output.read_available(timeout=5), output.at_end) == ("", False)
    assert (output.read_available(timeout=5), output.at_end) == ("", True)


def test_a_wait_for_output_ends_in_time_and_loses_nothing(lab: ClientLab) -> None:
    with lab.sandbox() as sandbox, sandbox.exec("cat", text=False) as process:
        began = time.monotonic()
        assert process.stdout.read_available(timeout=0.2) == b""
        assert 0.2 <= time.monotonic() - began < 2
        for word in (b"one", b"two"):
            process.stdin.write(word)
            assert process.stdout.read_available(timeout=10) == word
        process.stdin.write("three\n")
        again = sandbox.process(process.id)
        assert again.stdout.read_available(timeout=0) == "onetwothree\n"
        assert not again.stdout.at_end
        with pytest.raises(shoal.InvalidRequest) as caught:
            again.stdout.read_available(timeout="1")  # type: ignore[arg-type]
        assert caught.value.field == "timeout"


def test_bytes_come_as_they_are() -> None:
    assert list(bytes_output(Pieces(b"a\n", b"\xff\0"))) == [b"a\n", b"\xff\0"]
    assert list(bytes_output(Pieces(b"a", b"b\nc"), by_line=True)) == [b"ab\n", b"c"]


def test_read_takes_as_much_as_it_was_asked_for() -> None:
    output = text_output(Pieces(b"abc", b"def", b"ghi"))
    assert [output.read(4), output.read(0), output.read(1), output.readline(), output.read(9)] == [
        "abcd",
        "",
        "e",
        "fghi",
        "",
    ]


def test_a_line_without_end_comes_in_pieces() -> None:
    lines = list(text_output(Pieces(*[b"x" * 100_000] * 25)))
    assert sum(map(len, lines)) == 2_500_000
    assert max(map(len, lines)) <= MAX_LINE + 100_000


def test_one_reader_at_a_time(lab: ClientLab) -> None:
    async def two() -> None:
        async with await shoal.Sandbox.create.aio(client=lab.client) as sandbox:
            process = await sandbox.exec.aio("cat")
            first = asyncio.create_task(process.stdout.readline.aio())
            await asyncio.sleep(0.02)
            with pytest.raises(shoal.FailedPrecondition) as caught:
                await process.stdout.readline.aio()
            assert caught.value.state == "reading"
            await process.stdin.write.aio("x\n")
            assert await first == "x\n"

    asyncio.run(two())


def test_a_reader_that_gave_up_loses_nothing(lab: ClientLab) -> None:
    async def impatient() -> str:
        async with await shoal.Sandbox.create.aio(client=lab.client) as sandbox:
            process = await sandbox.exec.aio("cat")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(process.stdout.read.aio(), 0.02)
            await process.stdin.write.aio("all of it")
            await process.stdin.close.aio()
            return await process.stdout.read.aio()

    assert asyncio.run(impatient()) == "all of it"
