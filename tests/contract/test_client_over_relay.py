"""The client over a real relay and a real agent: run, streams, files, broken connections, threads, interrupts.

All of it twice: straight to the relay as inside a cluster, and through the HTTP API.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import shoal
from tests.contract.client_relay import ClientLab, client_lab

pytestmark = pytest.mark.timeout(90)
ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["relay", "http"])
def lab(request: pytest.FixtureRequest) -> Iterator[ClientLab]:
    with client_lab(request.param) as made:
        yield made


@pytest.fixture
def sandbox(lab: ClientLab) -> shoal.Sandbox:
    return lab.sandbox


# run


def test_run(sandbox: shoal.Sandbox) -> None:
    result = sandbox.run("echo out; echo err >&2; exit 3", env={"A": "b"})
    assert (result.returncode, result.stdout, result.stderr) == (3, "out\n", "err\n")
    assert sandbox.run('printf "$A$PWD"', env={"A": "é "}, workdir="/usr").stdout == "é /usr"
    assert sandbox.run(["printf", "%s", "no $shell"]).stdout == "no $shell"
    every = bytes(range(256)) * 4000
    assert sandbox.run(["cat"], input=every, text=False).stdout == every
    assert sandbox.run("id -u", user="65534").stdout == "65534\n"


def test_run_ends_what_takes_too_long_and_drops_what_is_too_much(sandbox: shoal.Sandbox) -> None:
    began = time.monotonic()
    result = sandbox.run("sleep 60 & sleep 60", timeout=0.3)
    assert (result.returncode, result.timed_out) == (-9, True)
    assert time.monotonic() - began < 10
    result = sandbox.run("yes | head -c 3000000; echo end >&2", max_output=1000)
    assert (result.returncode, len(result.stdout), result.stderr, result.truncated) == (0, 1000, "end\n", True)


def test_what_cannot_be_run_is_told(sandbox: shoal.Sandbox) -> None:
    with pytest.raises(shoal.CommandNotFound) as missing:
        sandbox.run(["no-such-program"])
    assert missing.value.exit_code == 127
    with pytest.raises(shoal.CommandNotExecutable) as refused:
        sandbox.run(["/etc/hostname"])
    assert refused.value.exit_code == 126
    with pytest.raises(shoal.UserNotFound):
        sandbox.run(["true"], user="nobody-of-that-name")
    with pytest.raises(shoal.CommandFailed) as failed:
        sandbox.run("echo why >&2; exit 4", check=True)
    assert (failed.value.returncode, failed.value.stderr) == (4, "why\n")


def test_arguments_and_variables_up_to_the_kernels_limit(sandbox: shoal.Sandbox) -> None:
    count = ["sh", "-c", 'printf %s "$@" | wc -c; printf %s "$A" | wc -c', "sh"]
    worst = "\1" * 120_000  # six bytes each in JSON
    for call in (sandbox.run, lambda *argv, **options: sandbox.exec(*argv, **options).stdout.read()):
        counted = call(count + [worst] * 15, env={"A": worst})
        assert getattr(counted, "stdout", counted).split() == ["1800000", "120000"]
    assert sandbox.run(["sh", "-c", "echo $#", "sh", *["x"] * 150_000]).stdout == "150000\n"
    variables = {f"A{number}": "x" * 100_000 for number in range(18)}
    assert sandbox.run("echo ${#A17}", env=variables).stdout == "100000\n"
    for argv, env, field in (
        (["true"] + ["x" * 120_000] * 20, {}, "argv"),
        (["true"], {f"A{number}": "x" * 120_000 for number in range(20)}, "env"),
        (["true", "x" * (128 << 10)], {}, "argv"),
        (["true"] + [worst] * 51, {}, "argv"),
    ):
        with pytest.raises(shoal.InvalidRequest) as caught:
            sandbox.run(argv, env=env)
        assert caught.value.field == field
    assert sandbox.run("echo well").stdout == "well\n"


# exec


def test_output_is_live(sandbox: shoal.Sandbox) -> None:
    process = sandbox.exec("sh", "-c", "echo one; read line; echo got $line; echo err >&2; exit 7")
    assert next(process.stdout) == "one\n"
    assert process.poll() is None
    process.stdin.write("two\n")
    assert process.stdout.read() == "got two\n"
    assert list(process.stderr) == ["err\n"]
    assert process.wait() == 7
    assert [info.returncode for info in sandbox.processes() if info.id == process.id] == [7]


def test_awaited_side_by_side(lab: ClientLab) -> None:
    met = lab.agent_lab.directory / "met"
    met.mkdir()
    # Each ends once all are there: one after the other they would wait for ever.
    meet = f"touch {met}/$0; echo $0; while [ $(ls {met} | wc -l) -lt 20 ]; do sleep 0.05; done; echo end"

    async def one(number: int) -> list[str]:
        async with await lab.sandbox.exec.aio("sh", "-c", meet, str(number)) as process:
            return [line async for line in process.stdout]

    async def all_of_them() -> list[list[str]]:
        async with asyncio.timeout(60):
            found = await asyncio.gather(*[one(number) for number in range(20)])
        await lab.client.close.aio()
        return found

    assert asyncio.run(all_of_them()) == [[f"{number}\n", "end\n"] for number in range(20)]


def test_standard_error_may_be_merged_and_bytes_are_kept(sandbox: shoal.Sandbox) -> None:
    merged = sandbox.exec("sh", "-c", "echo a; echo b >&2; echo c", merge_stderr=True)
    assert merged.stdout.read() == "a\nb\nc\n"
    assert sandbox.run("echo a; echo b >&2; echo c", merge_stderr=True).stdout == "a\nb\nc\n"
    raw = sandbox.exec("printf", r"\377\000", text=False)
    assert raw.stdout.read() == b"\xff\0"


def test_a_program_that_asks_is_answered(sandbox: shoal.Sandbox) -> None:
    half = r"printf 'n\303'; read x; printf '\251? '; read y; sleep 0.2; echo $x$y >&2"
    with sandbox.exec(half, merge_stderr=True) as process:
        assert process.stdout.read_available(timeout=20) == "n"
        assert (process.stdout.read_available(timeout=0.1), process.stdout.at_end) == ("", False)
        process.stdin.write("a\n")
        assert process.stdout.read_available(timeout=20) == "é? "
        process.stdin.write("b\n")
        process.wait()
        assert sandbox.process(process.id).stdout.read_available(timeout=0) == "né? ab\n"
        assert process.stdout.read_available(timeout=0) == "ab\n"
        assert (process.stdout.read_available(timeout=20), process.stdout.at_end) == ("", True)


def test_a_terminal_without_echo_and_its_kind(sandbox: shoal.Sandbox) -> None:
    for options, said in (({}, "hi\r\n"), ({"echo": False, "term": "dumb"}, "")):
        with sandbox.exec('read x; echo "$TERM $x"', pty=True, env={"TERM": "vt100"}, **options) as process:
            process.stdin.write("hi\n")
            assert process.stdout.read() == f"{said}{options.get('term', 'vt100')} hi\r\n"


def test_a_terminal(sandbox: shoal.Sandbox) -> None:
    process = sandbox.exec("sh", "-c", "stty size; read x; stty size; test -t 0 && echo yes", pty=(10, 20))
    assert process.stdout.readline() == "10 20\r\n"
    process.resize(30, 40)
    process.stdin.write("\n")
    rest = process.stdout.read()
    assert "30 40\r\n" in rest
    assert rest.endswith("yes\r\n")
    assert process.wait() == 0


def test_signals(sandbox: shoal.Sandbox) -> None:
    process = sandbox.exec("sh", "-c", "trap 'echo caught; exit 5' USR1; echo ready; while :; do sleep 0.05; done")
    assert process.stdout.readline() == "ready\n"
    process.kill("USR1")
    assert process.wait(timeout=10) == 5
    with sandbox.exec("sh", "-c", "trap '' TERM; echo ready; sleep 60 & wait; sleep 60") as stubborn:
        stubborn.stdout.readline()
        stubborn.terminate()
        with pytest.raises(shoal.DeadlineExceeded):
            stubborn.wait(timeout=0.2)
    assert stubborn.wait(timeout=10) == -9


# Connections break: the relay is killed, the API drops its clients


def test_a_stream_goes_on_where_it_was(lab: ClientLab) -> None:
    process = lab.sandbox.exec(
        *("sh", "-c", "i=0; while [ $i -lt 40 ]; do seq $((i*5000)) $((i*5000+4999)); i=$((i+1)); sleep 0.03; done")
    )
    killer = threading.Thread(target=lab.interrupt_often, args=[0.3])
    killer.start()
    lines = list(process.stdout)
    killer.join()
    assert lines == [f"{number}\n" for number in range(200_000)]
    assert process.wait() == 0


def test_input_goes_on_where_it_was(lab: ClientLab) -> None:
    target = lab.agent_lab.directory / "copy"
    process = lab.sandbox.exec("sh", "-c", f"cat > {target}")
    data = b"".join(b"%d\n" % number for number in range(400_000))
    killer = threading.Thread(target=lab.interrupt_often, args=[0.2])
    killer.start()
    for start in range(0, len(data), 70_000):
        process.stdin.write(data[start : start + 70_000])
        time.sleep(0.02)
    process.stdin.close()
    killer.join()
    assert process.wait() == 0
    assert target.read_bytes() == data


def test_runs_and_waits_go_on_and_nothing_runs_twice(lab: ClientLab) -> None:
    log = lab.agent_lab.directory / "log"
    waited = lab.sandbox.exec("sleep", "1")

    def one(number: int) -> str:
        return lab.sandbox.run(f"echo {number} >> {log}; sleep 0.{number % 9 + 1}; echo {number}").stdout

    with ThreadPoolExecutor(17) as pool:
        results = [pool.submit(one, number) for number in range(32)]
        ending = pool.submit(waited.wait)
        lab.interrupt_often(0.2)
        assert [result.result() for result in results] == [f"{number}\n" for number in range(32)]
        assert ending.result() == 0
    assert sorted(log.read_text().split(), key=int) == [str(number) for number in range(32)]


def test_a_relay_that_stays_away_is_told_in_time(lab: ClientLab, monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal.client import retrying_agent

    monkeypatch.setattr(retrying_agent.Patience.__init__, "__defaults__", (0.5, time.monotonic))
    assert lab.sandbox.run("true").returncode == 0
    lab.do(lab.agent_lab.relay.kill())
    try:
        began = time.monotonic()
        with pytest.raises(shoal.Unavailable) as caught:
            lab.sandbox.run("true")
        assert caught.value.retryable
        assert time.monotonic() - began < 12  # less than is usual, and more than a machine may stand still
    finally:
        lab.do(lab.agent_lab.relay.start())


# Threads and interrupts


def test_sixteen_threads_at_once(sandbox: shoal.Sandbox) -> None:
    def work(number: int) -> int:
        return sum(sandbox.run(["echo", str(number)]).stdout == f"{number}\n" for _ in range(40))

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(work, range(16))) == [40] * 16


def test_an_interrupt_reaches_the_caller_and_ends_the_wait(lab: ClientLab) -> None:
    code = """
        import logging, sys
        from tests.contract.client_relay import sandbox_at

        logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of what is slow, as all is at times

        sandbox = sandbox_at(*sys.argv[1:])
        process = sandbox.exec("sleep", "60")
        for call in (lambda: sandbox.run("sleep 60"), process.wait, process.stdout.read):
            try:
                print("ready", flush=True)
                call()
            except KeyboardInterrupt:
                print("interrupted", flush=True)
        assert sandbox.run("echo still fine").stdout == "still fine\\n"
        process.kill()
    """
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-X", "dev", "-c", textwrap.dedent(code), *lab.access()],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        for _ in range(3):
            assert child.stdout.readline() == "ready\n", child.stderr.read()
            time.sleep(0.3)
            child.send_signal(signal.SIGINT)
            assert child.stdout.readline() == "interrupted\n", child.stderr.read()
        assert child.wait(20) == 0
        assert child.stderr.read() == ""


# Files


def test_files(lab: ClientLab) -> None:
    files, top = lab.sandbox.files, lab.agent_lab.directory
    big = os.urandom(20 << 20)
    assert files.write_bytes(top / "big", big) == len(big)
    assert files.read_bytes(top / "big") == big
    with files.open(top / "text", "w") as file:
        file.write("one\ntwo\n")
    assert files.append(top / "text", "three") == 5
    with files.open(top / "text") as file:
        assert list(file) == ["one\n", "two\n", "three"]
    files.mkdir(top / "d/e", parents=True)
    files.move(top / "text", top / "d/e/text")
    assert [entry.name for entry in files.list(top / "d")] == ["e"]
    assert files.stat(top / "d/e/text").size == 13
    files.remove(top / "d", recursive=True)
    assert not files.exists(top / "d")


def test_reading_goes_on_in_the_same_file_or_not_at_all(lab: ClientLab) -> None:
    files, path = lab.sandbox.files, lab.agent_lab.directory / "big"
    data = os.urandom(40 << 20)  # more than is ever under way
    files.write_bytes(path, data)
    with files.open(path, "rb") as file:
        start = file.read(1 << 20)
        lab.interrupt()
        assert start + file.read() == data
    with files.open(path, "rb") as file:
        file.read(1 << 20)
        files.write_bytes(path, bytes(len(data)))
        lab.interrupt()
        with pytest.raises(shoal.FailedPrecondition) as caught:
            file.read()
        assert caught.value.state == "changed"


def test_trees_go_up_and_down(lab: ClientLab, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a/b").mkdir(parents=True)
    for number in range(300):
        (source / f"a/{number}").write_bytes(os.urandom(number * 100))
    (source / "a/b/run").write_text("#!/bin/sh\necho ran\n")
    (source / "a/b/run").chmod(0o755)
    (source / "link").symlink_to("a/b/run")
    files, remote = lab.sandbox.files, str(lab.agent_lab.directory / "tree")
    assert files.upload(source, remote).skipped == ()
    assert lab.sandbox.run([f"{remote}/link"]).stdout == "ran\n"
    seen: list[int] = []
    transfer = files.download(remote, tmp_path / "back", progress=seen.append)
    assert transfer.skipped == ()
    assert seen[-1] >= transfer.bytes
    assert subprocess.run(["diff", "-r", source, tmp_path / "back"]).returncode == 0
    assert (tmp_path / "back/a/b/run").stat().st_mode & 0o777 == 0o755


def test_sparse_files_stay_sparse_both_ways(lab: ClientLab, tmp_path: Path) -> None:
    source, size = tmp_path / "source" / ("n" * 255), 64 << 20
    source.parent.mkdir()
    with source.open("wb") as file:
        file.write(b"begin")
        file.seek(size // 2 + 77)
        file.write(os.urandom(5000))
        file.truncate(size)
    files, remote = lab.sandbox.files, lab.agent_lab.directory / "remote"
    files.upload(source, remote / source.name)
    files.upload(source.parent, remote / "tree")
    files.download(remote / source.name, tmp_path / source.name)
    files.download(remote, tmp_path / "back")
    for copy in (tmp_path / source.name, tmp_path / "back" / source.name, tmp_path / "back/tree" / source.name):
        assert copy.read_bytes() == source.read_bytes()
    for made in (
        remote / source.name,
        remote / "tree" / source.name,
        tmp_path / source.name,
        tmp_path / "back" / source.name,
    ):
        assert made.stat().st_blocks * 512 < 1 << 20
    with (remote / "endless").open("wb") as file:
        file.truncate(1 << 42)
    for endless in (remote / "endless", remote):
        with pytest.raises(shoal.QuotaExceeded) as caught:
            files.download(endless, tmp_path / "huge")
        assert caught.value.field == "max_bytes"
    assert not (tmp_path / "huge" / "endless").exists()


def test_changes_are_watched_across_a_broken_connection(lab: ClientLab) -> None:
    top = lab.agent_lab.directory / "watched"
    top.mkdir()
    with lab.sandbox.files.watch(top) as watch:
        (top / "one").touch()
        event = next(watch)
        assert (event.kind, event.path) == ("created", str(top / "one"))
        lab.interrupt()
        while event.kind != "overflow":  # what happened meanwhile is not known
            event = next(watch)
        (top / "two").touch()
        while event.path != str(top / "two"):
            event = next(watch)
