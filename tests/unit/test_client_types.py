"""What a type checker makes of the client: both forms of every call, and `str` or `bytes` as it was asked for."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)  # all that `shoal` imports is checked for the first time

ROOT = Path(__file__).parents[2]

RIGHT = """
    from typing import assert_type
    import shoal

    def blocking() -> None:
        sandbox = shoal.Sandbox.create("sleep", "1", cpu=(0.5, 2), memory=256, timeout=60)
        assert_type(sandbox, shoal.Sandbox)
        assert_type(sandbox.run("x"), shoal.Result[str])
        assert_type(sandbox.run(["x"], text=False).stdout, bytes)
        assert_type(sandbox.exec("x", pty=True).wait(timeout=1), int)
        for line in sandbox.exec("x").stdout:
            assert_type(line, str)
        assert_type(sandbox.exec("x", text=False).stderr.read(), bytes)
        with sandbox.files.open("/f", "rb") as file:
            assert_type(file.read(), bytes)
        assert_type(sandbox.files.open("/f").readline(), str)
        assert_type(shoal.connect(), shoal.Client)
        assert_type(shoal.connect("https://host", token="t", ca="/ca.pem"), shoal.Client)
        assert_type(shoal.Sandbox.create_many(3, image="i", deadline=60), list[shoal.Sandbox])
        many = shoal.Sandbox.create_many([{"name": "a"}], return_errors=True)
        assert_type(many, list[shoal.Sandbox | shoal.ShoalError])
        for event in shoal.connect().events(after=0):
            assert_type(event, shoal.SandboxEvent)

    async def awaited() -> None:
        async with await shoal.Sandbox.create.aio(image="i") as sandbox:
            assert_type(await sandbox.run.aio("x", check=True), shoal.Result[str])
            process = await sandbox.exec.aio("x", text=False)
            async for chunk in process.stdout:
                assert_type(chunk, bytes)
            assert_type(await sandbox.files.read_text.aio("/f"), str)
"""

WRONG = """
    import shoal
    shoal.Sandbox.create(1)
    shoal.Sandbox.create(imag="x")
    shoal.Sandbox.from_id("sb-1").run("x", timeout="1")
    shoal.Sandbox.from_id("sb-1").files.write_bytes("/f", "text")
    shoal.Sandbox.from_id("sb-1").network
    shoal.Sandbox.create_many(3, imag="x")
    shoal.Sandbox.create_many([{"name": 1}])
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mypy")


def check(code: str, directory: Path, cache: Path) -> list[str]:
    """mypy's complaints about `code`, as strict as can be. In a process of its own: it sets the garbage collector to its liking."""
    file = directory / "program.py"
    file.write_text(textwrap.dedent(code))
    options = ["--strict", "--follow-imports=silent", "--no-error-summary", f"--cache-dir={cache}", "--config-file="]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(file)],
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_right_programs_pass(tmp_path: Path, cache: Path) -> None:
    assert check(RIGHT, tmp_path, cache) == []


def test_wrong_programs_do_not(tmp_path: Path, cache: Path) -> None:
    lines = {int(line.split(":")[1]) for line in check(WRONG, tmp_path, cache) if " error: " in line}
    assert lines == set(range(3, 10))
