"""Files, through a real relay and a real agent."""

from __future__ import annotations

import asyncio
import io
import os
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal.model import errors
from shoal.wire.agent import Agent, WatchEvent
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


@pytest.fixture
def place(sandbox: AgentLab) -> Path:
    return sandbox.directory


async def chunks(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 1 << 20, (10 << 20) + 7])
async def test_write_and_read(agent: Agent, place: Path, size: int) -> None:
    data = os.urandom(size)
    file = place / "f"
    assert await agent.write(file, data) == size
    assert file.read_bytes() == data
    assert await agent.read_bytes(file) == data
    assert b"".join([chunk async for chunk in agent.read(file)]) == data


async def test_write_from_a_source(agent: Agent, place: Path) -> None:
    data = os.urandom(3_000_001)
    assert await agent.write(place / "f", chunks(data, 70_000)) == len(data)
    assert (place / "f").read_bytes() == data


async def test_write_of_what_holds_bytes(agent: Agent, place: Path) -> None:
    for data in (bytearray(b"abc"), memoryview(b"abc")):
        await agent.write(place / "f", data)
        assert (place / "f").read_bytes() == b"abc"


async def test_append_mode_and_parents(agent: Agent, place: Path) -> None:
    file = place / "a" / "b" / "f"
    with pytest.raises(errors.PathNotFound):
        await agent.write(file, b"1")
    await agent.write(file, b"1", parents=True, mode=0o600)
    await agent.write(file, b"2", append=True)
    assert file.read_bytes() == b"12"
    assert file.stat().st_mode & 0o777 == 0o600
    await agent.write(file, b"3")
    assert file.stat().st_mode & 0o777 == 0o600


async def test_every_call_acts_as_its_user(agent: Agent, place: Path) -> None:
    user = "65534:65533"
    place.parent.chmod(0o755)
    for name in ("theirs", "closed"):
        (place / name).mkdir()
        (place / name / "secret").write_bytes(b"secret")
        (place / name / "secret").chmod(0o600)
    os.chown(place / "theirs", 65534, 65533)
    (place / "closed").chmod(0o700)
    secret = place / "closed" / "secret"
    for call in (
        agent.read_bytes(secret, user=user),
        agent.read_bytes(place / "theirs/secret", user=user),
        anext(agent.read(secret, user=user)),
        agent.write(place / "f", b"x", user=user),
        agent.list(place / "closed", user=user),
        agent.stat(secret, user=user),
        agent.mkdir(place / "d", user=user),
        agent.remove(place / "closed", recursive=True, user=user),
        anext(agent.pack(place / "closed", user=user)),
        agent.unpack(place / "d", b"", user=user),
        anext(agent.watch(place / "closed", user=user)),
    ):
        with pytest.raises(errors.PermissionDenied) as caught:
            await call
        assert caught.value.field == "path"
    with pytest.raises(errors.PermissionDenied):
        await agent.move(place / "theirs/secret", place / "out", user=user)
    await agent.write(place / "theirs/mine", b"", user=user)
    made = (place / "theirs/mine").stat()
    assert (made.st_uid, made.st_gid) == (65534, 65533)
    await agent.configure(user=user)  # and now by default
    with pytest.raises(errors.PermissionDenied):
        await agent.read_bytes(secret)
    assert await agent.read_bytes(secret, user="0") == b"secret"


async def test_read_a_part(agent: Agent, place: Path) -> None:
    (place / "f").write_bytes(b"0123456789")
    assert await agent.read_bytes(place / "f", 3) == b"3456789"
    assert await agent.read_bytes(place / "f", 3, 4) == b"3456"
    assert await agent.read_bytes(place / "f", 8, 100) == b"89"
    assert await agent.read_bytes(place / "f", 20) == b""
    assert await agent.read_bytes(place / "f", 0, 0) == b""


async def test_read_what_has_no_size(agent: Agent) -> None:
    assert b"MemTotal" in await agent.read_bytes("/proc/meminfo")


async def test_half_a_write_leaves_the_old_file(agent: Agent, place: Path) -> None:
    file = place / "f"
    file.write_bytes(b"old")

    async def source() -> AsyncIterator[bytes]:
        yield b"new" * 100_000
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        await agent.write(file, source())
    await agent.ping()
    for _ in range(100):
        if os.listdir(place) == ["f"]:
            break
        await asyncio.sleep(0.02)
    assert file.read_bytes() == b"old"
    assert os.listdir(place) == ["f"]


async def test_list_and_stat(agent: Agent, place: Path) -> None:
    (place / "file").write_bytes(b"12345")
    (place / "dir").mkdir()
    (place / "link").symlink_to("file")
    os.mkfifo(place / "pipe")
    (place / "\udcff").touch()
    entries = await agent.list(place)
    assert [entry.name for entry in entries] == ["dir", "file", "link", "pipe", "\udcff"]
    kinds = {entry.name: entry.kind for entry in entries}
    assert kinds == {"dir": "dir", "file": "file", "link": "link", "pipe": "other", "\udcff": "file"}
    file = await agent.stat(place / "file")
    real = (place / "file").stat()
    assert (file.size, file.mode & 0o7777, file.mtime_ns) == (5, real.st_mode & 0o7777, real.st_mtime_ns)
    assert file.path == str(place / "file")
    assert (await agent.stat(place / "link")).kind == "file"
    link = await agent.stat(place / "link", follow=False)
    assert (link.kind, link.target) == ("link", "file")
    odd = await agent.stat(entries[-1].path)
    assert odd.path == entries[-1].path


async def test_list_of_many(agent: Agent, place: Path) -> None:
    for number in range(3000):
        (place / f"{number:05}").touch()
    assert [entry.name for entry in await agent.list(place)] == [f"{number:05}" for number in range(3000)]


async def test_mkdir_remove_move(agent: Agent, place: Path) -> None:
    await agent.mkdir(place / "a/b", parents=True, mode=0o700)
    await agent.mkdir(place / "a/b", parents=True)
    assert (place / "a/b").stat().st_mode & 0o777 == 0o700
    with pytest.raises(errors.AlreadyExists):
        await agent.mkdir(place / "a")
    with pytest.raises(errors.PathNotFound):
        await agent.mkdir(place / "x/y")
    with pytest.raises(errors.FailedPrecondition):
        await agent.remove(place / "a")
    (place / "f").write_bytes(b"f")
    (place / "g").write_bytes(b"g")
    with pytest.raises(errors.AlreadyExists):
        await agent.move(place / "f", place / "g")
    await agent.move(place / "f", place / "g", overwrite=True)
    assert (place / "g").read_bytes() == b"f"
    (place / "a/link").symlink_to(place / "g")
    await agent.remove(place / "a", recursive=True)
    assert (place / "g").exists()
    with pytest.raises(errors.PathNotFound):
        await agent.remove(place / "a")


async def test_errors(agent: Agent, place: Path) -> None:
    (place / "f").write_bytes(b"")
    for call in (agent.read_bytes(place / "none"), agent.stat(place / "none"), agent.list(place / "none")):
        with pytest.raises(errors.PathNotFound):
            await call
    for call, kind in (
        (agent.read_bytes(place), errors.IsADirectory),
        (agent.write(place, b"x"), errors.IsADirectory),
        (agent.write(place, b"x", append=True), errors.IsADirectory),
        (agent.list(place / "f"), errors.NotADirectory),
        (agent.stat(place / "f/x"), errors.NotADirectory),
        (agent.write(place / "f/x", b"", parents=True), errors.NotADirectory),
        (agent.mkdir(place / "f/x", parents=True), errors.NotADirectory),
        (anext(agent.read(place / "none")), errors.PathNotFound),
        (anext(agent.pack(place / "none")), errors.PathNotFound),
    ):
        with pytest.raises(kind) as found:
            await call
        assert found.value.field == "path"
    with pytest.raises(errors.RelativePath) as relative:
        await agent.read_bytes("f")
    assert relative.value.field == "path"


async def test_pack_and_unpack(agent: Agent, place: Path) -> None:
    source = place / "source"
    (source / "sub").mkdir(parents=True)
    (source / "a").write_bytes(os.urandom(200_000))
    (source / "sub/b").write_bytes(b"b")
    (source / "sub/link").symlink_to("b")
    packed = b"".join([chunk async for chunk in agent.pack(source)])
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        names = sorted(name.strip("./") for name in tar.getnames())
    assert [name for name in names if name] == ["a", "sub", "sub/b", "sub/link"]
    done = await agent.unpack(place / "target", chunks(packed, 10_000))
    assert done["files"] >= 2
    assert (place / "target/a").read_bytes() == (source / "a").read_bytes()
    assert os.readlink(place / "target/sub/link") == "b"
    assert await agent.unpack(place / "again", packed) == done


async def test_unpack_refuses_what_leads_out(agent: Agent, place: Path) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("../out"), io.BytesIO())
    with pytest.raises(errors.InvalidRequest):
        await agent.unpack(place / "in", archive.getvalue())
    assert not (place / "out").exists()


async def test_watch(agent: Agent, place: Path) -> None:
    (place / "sub").mkdir()
    async with agent.watch(place, recursive=True) as changes:
        (place / "f").touch()
        (place / "f").rename(place / "g")
        (place / "sub/h").touch()
        (place / "g").unlink()
        seen: list[WatchEvent] = []
        async for change in changes:
            seen.append(change)
            if change.kind == "removed":
                break
    told = {(change.kind, change.path, change.to) for change in seen}
    assert ("created", str(place / "f"), None) in told
    assert ("moved", str(place / "f"), str(place / "g")) in told
    assert ("created", str(place / "sub/h"), None) in told
    assert ("removed", str(place / "g"), None) in told
    assert (await agent.ping())["uptime_ms"] >= 0
