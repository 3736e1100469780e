"""The client's types, as a type checker sees them.

`make lint` checks this file; nothing runs it. A `type: ignore` that is not needed is an error.
"""

from __future__ import annotations

from typing import assert_type

import shoal


def blocking() -> None:
    """Each call gives what it says; with `text=False`, bytes."""
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


def plain(sandbox: shoal.Sandbox, item: str) -> int:
    """A function for `shoal.map`."""
    return len(sandbox.run(item).stdout)


async def coroutine(sandbox: shoal.Sandbox, item: str) -> int:
    """The same, async."""
    return len((await sandbox.run.aio(item)).stdout)


def mapped() -> None:
    """A map's outcomes have the types of its items and of the function's results."""
    for outcome in shoal.map(plain, ["a"], concurrency=2, memory=256):
        assert_type(outcome, shoal.Outcome[str, int])
    for outcome in shoal.map(coroutine, ["a"], ordered=True):
        assert_type(outcome.unwrap(), int)
    shoal.map(plain, [1])  # type: ignore[arg-type]
    shoal.map(plain, ["a"], concurency=2)  # type: ignore[call-overload]


async def mapped_awaited() -> None:
    """The same, awaited."""
    async for outcome in shoal.map.aio(coroutine, iter("ab"), retry_on=(OSError,)):
        assert_type(outcome.value, int | None)


async def awaited() -> None:
    """The same calls with `.aio`."""
    async with await shoal.Sandbox.create.aio(image="i") as sandbox:
        assert_type(await sandbox.run.aio("x", check=True), shoal.Result[str])
        process = await sandbox.exec.aio("x", text=False)
        async for chunk in process.stdout:
            assert_type(chunk, bytes)
        assert_type(await sandbox.files.read_text.aio("/f"), str)


def refused(sandbox: shoal.Sandbox) -> None:
    """Wrong calls are errors."""
    shoal.Sandbox.create(1)  # type: ignore[arg-type]
    shoal.Sandbox.create(imag="x")  # type: ignore[call-arg]
    sandbox.run("x", timeout="1")  # type: ignore[call-overload]
    sandbox.files.write_bytes("/f", "text")  # type: ignore[arg-type]
    sandbox.network  # type: ignore[attr-defined]  # noqa: B018
    shoal.Sandbox.create_many(3, imag="x")  # type: ignore[call-overload]
    shoal.Sandbox.create_many([{"name": 1}])  # type: ignore[typeddict-item]
