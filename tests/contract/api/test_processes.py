"""Commands and processes over HTTP, through a real relay and a real agent."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from typing import Any

import aiohttp
import pytest

from shoal.cluster.api.processes import routes as processes
from shoal.model import verbs
from shoal.model.access import Scope
from tests.contract.api.lab import Lab, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


# exec


async def test_exec(place: Lab) -> None:
    result = await place.exec("echo out; echo err >&2; exit 3")
    assert result.pop("duration") > 0
    assert result == {"returncode": 3, "stdout": "out\n", "stderr": "err\n", "timed_out": False, "truncated": False}
    result = await place.exec(
        ["sh", "-c", 'printf "$A $B $PWD"; cat'], env={"A": "é", "HOME": None}, workdir="/usr", input="ü\0"
    )
    assert result["stdout"] == "é  /usrü\0"
    every = bytes(range(256))
    result = await place.exec(["cat"], input_base64=base64.b64encode(every).decode(), encoding="base64")
    assert base64.b64decode(result["stdout"]) == every
    assert (await place.exec(["cat"], input_base64="/w=="))["stdout"] == "\ufffd"
    assert (await place.exec("id -u", user="65534"))["stdout"] == "65534\n"


async def test_exec_of_arguments_up_to_the_kernels_limit(place: Lab) -> None:
    result = await place.exec(["sh", "-c", 'printf %s "$@" | wc -c', "sh", *["\1" * 120_000] * 15])
    assert result["stdout"] == "1800000\n"
    process = await place.start(["sh", "-c", "echo ${#A}", "sh", *["x" * 120_000] * 15], env={"A": "y" * 100_000})
    assert await place.output(process) == b"100000\n"


async def test_exec_of_much_output(place: Lab) -> None:
    line = 'é\N{GRINNING FACE}"\\\x01\n'
    command = f"yes '{line[:-1]}' | head -n 300000; head -c 500000 /dev/zero >&2"
    result = await place.exec(command)
    assert result["stdout"] == line * 300_000
    assert result["stderr"] == "\0" * 500_000
    result = await place.exec(command, encoding="base64")
    assert base64.b64decode(result["stdout"]).decode() == line * 300_000
    result = await place.exec("yes | head -c 3000000", max_output=1000)
    assert (len(result["stdout"]), result["truncated"]) == (1000, True)


async def test_exec_ends_what_takes_too_long(place: Lab) -> None:
    began = time.monotonic()
    result = await place.exec("sleep 60 & sleep 60", timeout=0.3)
    assert (result["returncode"], result["timed_out"]) == (-9, True)
    assert time.monotonic() - began < 10


async def test_the_same_exec_again_runs_once(place: Lab) -> None:
    marks = place.directory / "marks"
    results = [await place.exec(f"echo x >> {marks}; echo done", id="p-once") for _ in range(3)]
    assert [result["stdout"] for result in results] == ["done\n"] * 3
    assert marks.read_text() == "x\n"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "argv"),
        ({"argv": []}, "argv"),
        ({"argv": [""]}, "argv"),
        ({"argv": ["true"], "command": "true"}, "argv"),
        ({"argv": "true"}, "argv"),
        ({"argv": ["a\0b"]}, "argv"),
        ({"argv": [1]}, "argv.0"),
        ({"argv": ["x" * (128 << 10)]}, "argv"),
        ({"command": "x" * (128 << 10)}, "command"),
        ({"command": "true", "timeout": -1}, "timeout"),
        ({"command": "true", "timeout": "5"}, "timeout"),
        ({"command": "true", "timeout": 1e12}, "timeout"),
        ({"command": "true", "max_output": 65 << 20}, "max_output"),
        ({"command": "true", "max_output": 1.5}, "max_output"),
        ({"command": "true", "env": {"A=B": "c"}}, "env"),
        ({"command": "true", "env": {"A": 1}}, "env.A"),
        ({"command": "true", "workdir": "usr"}, "workdir"),
        ({"command": "true", "workdir": {"b64": "!"}}, "workdir"),
        ({"command": "true", "input": "a", "input_base64": "YQ=="}, "input_base64"),
        ({"command": "true", "input_base64": "?"}, "input_base64"),
        ({"command": "true", "encoding": "latin-1"}, "encoding"),
        ({"command": "true", "id": "x"}, "id"),
        ({"command": "true", "unknown": 1}, "unknown"),
    ],
)
async def test_a_wrong_exec_names_its_field(place: Lab, body: dict[str, Any], field: str) -> None:
    code = "relative_path" if body.get("workdir") == "usr" else "invalid_request"
    assert await place.problem("POST", "/exec", json=body) == (400, code, field)


async def test_what_cannot_be_run_is_told(place: Lab) -> None:
    assert await place.problem("POST", "/exec", json={"argv": ["no-such-program"]}) == (
        400,
        "command_not_found",
        "argv",
    )
    status, code, _ = await place.problem("POST", "/exec", json={"argv": ["/etc/hostname"]})
    assert (status, code) == (400, "command_not_executable")
    status, code, _ = await place.problem("POST", "/exec", json={"command": "true", "user": "nobody-of-that-name"})
    assert (status, code) == (404, "user_not_found")
    async with place.http.post(f"{place.server.url}/v1/sandboxes/sb-none/exec", json={"argv": ["true"]}) as answer:
        assert (answer.status, (await answer.json(content_type=None))["code"]) == (404, "sandbox_not_found")


async def test_a_client_that_leaves_an_exec_leaves_its_process_alone(place: Lab) -> None:
    go, done = place.directory / "go", place.directory / "done"
    command = f"while [ ! -e {go} ]; do sleep 0.01; done; echo end > {done}"
    leaving = asyncio.ensure_future(place.exec(command, id="p-left"))

    async def runs() -> bool:
        return await place.open_streams() == 1

    async def given_up() -> bool:
        return await place.open_streams() == 0

    await until(runs, "the command runs")
    leaving.cancel()
    await asyncio.wait([leaving])
    await until(given_up, "nobody waits any more")
    go.touch()

    async def ended() -> bool:
        return done.exists()

    await until(ended, "it ran to its end")
    again = await place.problem("POST", "/exec", json={"command": command, "id": "p-left"})
    assert again[:2] == (409, "failed_precondition")  # it is not run twice, and its answer went with whoever left


async def test_execs_survive_a_relay_that_is_restarted(place: Lab) -> None:
    marks = place.directory / "marks"
    running = asyncio.ensure_future(place.exec(f"echo x >> {marks}; sleep 0.5; echo done"))

    async def began() -> bool:
        return marks.exists()

    await until(began, "it runs")
    await place.agent_lab.relay.kill()
    await place.agent_lab.relay.start()
    assert (await running)["stdout"] == "done\n"
    assert marks.read_text() == "x\n"


# Processes


async def test_output_by_offset(place: Lab) -> None:
    process = await place.start("printf err >&2; printf 0123456789; cat")

    async def written() -> bool:
        return await place.output(process, follow="false") == b"0123456789"

    await until(written, "it has written")
    async with place.http.get(f"{place.at}/processes/{process}/output?offset=4") as answer:
        assert (answer.status, answer.headers["X-Shoal-Offset"]) == (200, "4")
        assert answer.content_type == "application/octet-stream"
        assert await answer.content.readexactly(6) == b"456789"  # it comes while the process runs
    assert await place.output(process, offset=8, follow="false") == b"89"
    assert await place.output(process, offset=10, follow="false") == b""
    assert await place.output(process, stream="stderr", follow="false") == b"err"
    assert await place.problem("GET", f"/processes/{process}/output?offset=11") == (400, "invalid_request", "offset")
    assert await place.problem("GET", f"/processes/{process}/output?stream=x") == (400, "invalid_request", "stream")
    status, code, _ = await place.problem("GET", "/processes/p-none/output")
    assert (status, code) == (404, "process_not_found")


async def test_output_arrives_as_it_is_written(place: Lab) -> None:
    process = await place.start("while read line; do date +%s%N; done")
    late = []
    offset = 0
    async with place.http.get(f"{place.at}/processes/{process}/output") as answer:
        for _ in range(30):
            async with place.http.post(f"{place.at}/processes/{process}/stdin?offset={offset}", data=b"\n") as fed:
                offset = (await fed.json())["offset"]
            written = int(await answer.content.readline())
            late.append(time.time_ns() - written)
    # Nothing waits on purpose, as for an acknowledgement (40 ms): a busy machine delays half of them and more, but
    # hardly three of four.
    assert sorted(late)[len(late) // 4] < 20_000_000, late


async def test_a_reader_that_leaves_lets_go(place: Lab) -> None:
    process = await place.start("cat")
    async with place.http.get(f"{place.at}/processes/{process}/output"):
        assert await place.open_streams() == 1

    async def let_go() -> bool:
        return await place.open_streams() == 0

    await until(let_go, "the stream is closed")


async def test_much_output_to_a_slow_reader(place: Lab) -> None:
    process = await place.start("head -c 30000000 /dev/zero; echo end")
    async with place.http.get(f"{place.at}/processes/{process}/output") as answer:
        await asyncio.sleep(0.3)
        async with place.http.get(f"{place.at}/processes/{process}/wait?timeout=0") as waiting:
            assert (await waiting.json())["running"]  # it waits for its reader: nothing is gathered on the way
        data = await answer.read()
    assert len(data) == 30_000_004
    assert data.endswith(b"\0end\n")
    assert (await place.ended(process))["returncode"] == 0


async def test_stdin(place: Lab) -> None:
    process = await place.start("cat; echo end")
    at = f"{place.at}/processes/{process}/stdin"
    async with place.http.post(at, data=b"hello ") as answer:
        assert await answer.json() == {"offset": 6}
    async with place.http.post(f"{at}?offset=3", data=b"lo world") as answer:  # three of them it has
        assert await answer.json() == {"offset": 11}
    assert await place.problem("POST", f"/processes/{process}/stdin?offset=12", data=b"x") == (
        400,
        "invalid_request",
        "offset",
    )

    async def pieces() -> Any:
        for _ in range(40):
            yield b"x" * 100_000

    reading = asyncio.ensure_future(place.output(process))
    for _ in range(2):  # the second time all of it is there already
        async with place.http.post(f"{at}?offset=11&eof=true", data=pieces()) as answer:
            assert await answer.json() == {"offset": 4_000_011}
    assert await reading == b"hello world" + b"x" * 4_000_000 + b"end\n"
    await place.ended(process)
    status, code, _ = await place.problem("POST", f"/processes/{process}/stdin?offset=4000011", data=b"more")
    assert (status, code) == (409, "failed_precondition")


async def test_the_later_of_two_writers_takes_over(place: Lab) -> None:
    process = await place.start("cat")
    more = asyncio.Event()

    async def slowly() -> Any:
        yield b"first "
        await more.wait()
        yield b"lost"

    at = f"{place.at}/processes/{process}/stdin"
    earlier = asyncio.ensure_future(place.problem("POST", f"/processes/{process}/stdin", data=slowly()))

    async def arrived() -> bool:
        return await place.output(process, follow="false") == b"first "

    await until(arrived, "the first has begun")
    async with place.http.post(f"{at}?offset=6", data=b"second") as answer:
        assert await answer.json() == {"offset": 12}
    more.set()
    status, code, _ = await earlier
    assert (status, code) == (409, "failed_precondition")

    async def echoed() -> bool:
        return await place.output(process, follow="false") == b"first second"

    await until(echoed, "the second has come through")


async def test_a_body_that_breaks_off_has_gone_in_as_far_as_it_came(place: Lab) -> None:
    process = await place.start("cat")

    async def arrived() -> bool:
        return await place.output(process, follow="false") == b"part"

    async def broken() -> Any:
        yield b"part"
        await until(arrived, "the part has gone in")
        raise ConnectionError("gone")

    with pytest.raises(aiohttp.ClientError):
        await place.http.post(f"{place.at}/processes/{process}/stdin", data=broken())
    async with place.http.post(f"{place.at}/processes/{process}/stdin?eof=true", data=b"part two") as answer:
        assert await answer.json() == {"offset": 8}
    assert await place.output(process) == b"part two"


async def test_signals_and_ends(place: Lab) -> None:
    process = await place.start("trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done")
    async with place.http.get(f"{place.at}/processes/{process}/output") as answer:
        await answer.content.readline()
    for wait in ("0", "0.1"):
        async with place.http.get(f"{place.at}/processes/{process}/wait?timeout={wait}") as answer:
            assert await answer.json() == {"running": True, "returncode": None, "timed_out": False, "duration": None}
    async with place.http.post(f"{place.at}/processes/{process}/signal", json={"signal": "SIGTERM"}) as answer:
        assert answer.status == 204
    assert (await place.ended(process))["returncode"] == 5
    async with place.http.get(f"{place.at}/processes/{process}/wait?timeout=0") as answer:
        assert (await answer.json())["returncode"] == 5
    async with place.http.post(f"{place.at}/processes/{process}/signal", json={"signal": 9, "tree": True}) as answer:
        assert answer.status == 204  # it has ended: nothing
    async with place.http.get(f"{place.at}/processes") as answer:
        (row,) = (await answer.json())["processes"]
    assert (row["id"], row["running"], row["returncode"]) == (process, False, 5)
    for signal in (0, 65, "NO", "", None):
        status, code, field = await place.problem("POST", f"/processes/{process}/signal", json={"signal": signal})
        assert (status, code, field) == (400, "invalid_request", "signal")


@pytest.mark.parametrize(
    ("workdir", "kind"),
    [
        ("relative", "relative_path"),
        ("/not/there", "invalid_request"),
        ("/etc/hostname", "not_a_directory"),
        ("/nul\0", "invalid_request"),
    ],
)
@pytest.mark.parametrize("call", ["exec", "processes"])
async def test_a_directory_that_is_none_is_named_as_the_caller_named_it(
    place: Lab, call: str, workdir: str, kind: str
) -> None:
    refused = await place.problem("POST", f"/{call}", json={"argv": ["true"], "workdir": workdir})
    assert refused == (400, kind, "workdir")


async def test_the_same_start_again_starts_nothing(place: Lab) -> None:
    marks = place.directory / "marks"
    body = {"command": f"echo x >> {marks}", "id": "p-mine"}
    for _ in range(2):
        async with place.http.post(f"{place.at}/processes", json=body) as answer:
            assert (answer.status, (await answer.json())["id"]) == (201, "p-mine")
    await place.ended("p-mine")
    assert marks.read_text() == "x\n"


async def test_a_terminal_of_a_size(place: Lab) -> None:
    process = await place.start("stty size; read line; stty size", pty={"rows": 20, "cols": 70})
    async with place.http.get(f"{place.at}/processes/{process}/output") as answer:
        assert await answer.content.readline() == b"20 70\r\n"
        async with place.http.post(f"{place.at}/processes/{process}/resize", json={"rows": 30, "cols": 90}) as resized:
            assert resized.status == 204
        async with place.http.post(f"{place.at}/processes/{process}/stdin", data=b"\n") as fed:
            assert fed.status == 200
        assert (await answer.read()).split() == [b"30", b"90"]
    plain = await place.start("sleep 100")
    status, code, _ = await place.problem("POST", f"/processes/{plain}/resize", json={"rows": 30, "cols": 90})
    assert (status, code) == (409, "failed_precondition")


async def test_answers_are_not_run_by_browsers(place: Lab) -> None:
    process = await place.start("echo '<script>'")
    async with place.http.get(f"{place.at}/processes/{process}/output") as answer:
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Disposition"] == "attachment"
        assert answer.headers["X-Request-Id"]


async def test_a_token_that_may_only_read_enters_nothing(place: Lab) -> None:
    _, token = await place.cluster.ask(verbs.create_token, "reader", "main", Scope.READ, None)
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as reader:
        async with reader.post(f"{place.at}/exec", json={"argv": ["true"]}) as answer:
            assert (answer.status, json.loads(await answer.read())["code"]) == (403, "permission_denied")
        for path in ("/files?path=/etc/hostname", "/processes", "/processes/p-main/output"):
            async with reader.get(f"{place.at}{path}") as answer:
                assert answer.status == 403
        async with reader.get(f"{place.at}/logs") as answer:
            assert answer.status == 200


async def test_input_that_is_not_taken_is_given_up(place: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STDIN_IDLE_S", 0.3)
    process = await place.start("sleep 1000")
    before = await place.open_streams()
    status, code, _ = await place.problem("POST", f"/processes/{process}/stdin", data=io.BytesIO(bytes(4_000_000)))
    assert (status, code) == (408, "deadline_exceeded")
    assert await place.open_streams() == before
