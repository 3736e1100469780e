"""Files of a sandbox, one by one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.model.errors import AlreadyExists, PathNotFound, Unavailable
from tests.fakes.agent import FakeAgent
from tests.unit.client_lab import ClientLab


@pytest.fixture
def lab() -> ClientLab:
    return ClientLab()


@pytest.fixture
def files(lab: ClientLab) -> shoal.FileSystem:
    return lab.sandbox().files


def test_content_goes_in_and_comes_out(files: shoal.FileSystem) -> None:
    assert files.write_bytes("/a/b", b"\0\xff") == 2  # and its directory is made
    assert files.read_bytes("/a/b") == b"\0\xff"
    assert files.read_bytes("/a/b", offset=1, length=5) == b"\xff"
    assert files.read_text("/a/b") == "\0�"
    assert files.write_text("/t", "€") == 3
    assert files.append("/t", "!") == 1
    assert files.append("/t", b"?") == 1
    assert files.read_text("/t") == "€!?"
    with pytest.raises(shoal.PathNotFound):
        files.write_text("/no/f", "x", parents=False)


def test_arranging(files: shoal.FileSystem) -> None:
    files.mkdir("/d")
    files.write_text("/d/f", "x")
    assert [(e.name, e.kind, e.size) for e in files.list("/d")] == [("f", "file", 1)]
    assert files.stat("/d").kind == "dir"
    files.move("/d/f", "/d/g")
    assert (files.exists("/d/f"), files.exists("/d/g")) == (False, True)
    files.remove("/d/g")
    assert list(files.list("/d")) == []
    with pytest.raises(shoal.AlreadyExists):
        files.mkdir("/d")
    files.mkdir("/d", parents=True)


@pytest.mark.parametrize(
    ("call", "arguments", "error", "field"),
    [
        ("read_bytes", ("relative",), shoal.InvalidRequest, "path"),
        ("read_bytes", ("/a\0b",), shoal.InvalidRequest, "path"),
        ("read_bytes", ("/nothing",), shoal.PathNotFound, "path"),
        ("write_bytes", ("/f", "text"), shoal.InvalidRequest, "data"),
        ("write_text", ("/f", b"bytes"), shoal.InvalidRequest, "text"),
        ("open", ("/f", "r+"), shoal.InvalidRequest, "mode"),
        ("open", ("/nothing",), shoal.PathNotFound, "path"),
        ("list", ("/nothing",), shoal.PathNotFound, "path"),
        ("upload", ("/nothing here at all", "/x"), shoal.InvalidRequest, "local"),
    ],
    ids=str,
)
def test_bad_arguments_are_told(
    files: shoal.FileSystem, call: str, arguments: tuple[Any, ...], error: type[shoal.ShoalError], field: str
) -> None:
    with pytest.raises(error) as caught:
        getattr(files, call)(*arguments)
    assert caught.value.field == field


def test_what_a_first_attempt_did_is_no_error_of_the_second(lab: ClientLab, files: shoal.FileSystem) -> None:
    files.write_text("/f", "x")
    lab.fake.fail_next("remove", Unavailable("lost"))
    lab.fake.fail_next("remove", PathNotFound("gone already"))
    files.remove("/f")
    lab.fake.fail_next("mkdir", Unavailable("lost"))
    lab.fake.fail_next("mkdir", AlreadyExists("made already"))
    files.mkdir("/d")
    lab.fake.fail_next("remove", PathNotFound("there is none"))
    with pytest.raises(shoal.PathNotFound):
        files.remove("/g")


# File objects


def test_a_file_is_read_by_lines_and_by_size(files: shoal.FileSystem) -> None:
    files.write_text("/f", "one\ntwo €\n" + "x" * 50)
    with files.open("/f") as file:
        assert file.readline() == "one\n"
        assert file.read(3) == "two"
        assert list(file) == [" €\n", "x" * 50]
        assert file.read() == ""
    with files.open("/f", "rb") as raw:
        assert next(raw) == b"one\n"
    with pytest.raises(shoal.FailedPrecondition) as caught:
        raw.read()
    assert caught.value.state == "closed"


def test_a_file_is_written_when_it_is_closed(files: shoal.FileSystem) -> None:
    with files.open("/f", "w") as file:
        assert file.write("one\n") == 4
        assert not files.exists("/f")
        file.write("two\n")
        with pytest.raises(shoal.InvalidRequest) as caught:
            file.write(b"bytes")  # type: ignore[arg-type]
        assert caught.value.field == "data"
        with pytest.raises(shoal.FailedPrecondition) as wrong:
            file.read()
        assert wrong.value.state == "writing"
    assert files.read_text("/f") == "one\ntwo\n"
    with files.open("/f", "ab") as raw:
        raw.write(b"three")
    assert files.read_text("/f") == "one\ntwo\nthree"
    file.close()
    with pytest.raises(shoal.FailedPrecondition) as closed:
        file.write("more")
    assert closed.value.state == "closed"


def test_an_error_inside_writes_nothing(files: shoal.FileSystem) -> None:
    with pytest.raises(ZeroDivisionError), files.open("/f", "w") as file:
        file.write("half" * (1 // len("")))
    assert not files.exists("/f")


def test_more_than_fits_in_memory(files: shoal.FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal.client import sandbox_file

    monkeypatch.setattr(sandbox_file, "_IN_MEMORY", 100)
    with files.open("/f", "wb") as file:
        for _ in range(50):
            file.write(b"0123456789")
    assert files.read_bytes("/f") == b"0123456789" * 50


def test_reading_goes_on_after_a_broken_connection(lab: ClientLab, files: shoal.FileSystem) -> None:
    files.write_text("/f", "0123456789" * 10)
    with files.open("/f") as file:
        assert file.read(20) == "0123456789" * 2
        lab.fake.fail_next("read", Unavailable("lost"))
        assert file.read() == "0123456789" * 8


@pytest.mark.parametrize("now", ["x" * 100, "x" * 10, ""], ids=len)
def test_reading_does_not_go_on_in_another_file(lab: ClientLab, files: shoal.FileSystem, now: str) -> None:
    files.write_text("/f", "0123456789" * 10)
    with files.open("/f") as file:
        assert file.read(20) == "0123456789" * 2
        files.write_text("/f", now)
        lab.fake.fail_next("read", Unavailable("lost"))
        for _ in range(2):
            with pytest.raises(shoal.FailedPrecondition) as caught:
                file.read(50)
            assert caught.value.state == "changed"


def test_where_it_cannot_be_told_nothing_is_skipped(lab: ClientLab, files: shoal.FileSystem) -> None:
    files.write_text("/f", "0123456789" * 10)
    with files.open("/f", "rb") as file:
        assert file.read(20) == b"0123456789" * 2
        lab.fake.fail_next("read", Unavailable("lost"))
        away = Unavailable("lost")
        away.retryable = False
        lab.fake.fail_next("stat", away)
        with pytest.raises(shoal.Unavailable):
            file.read()
        assert file.read() == b"23456789" + b"0123456789" * 6  # 32 bytes had come in two pieces before


def test_awaited_too(lab: ClientLab) -> None:
    async def use() -> list[str]:
        files = (await shoal.Sandbox.create.aio(client=lab.client)).files
        async with await files.open.aio("/f", "w") as file:
            await file.write.aio("a\nb\n")
        async with await files.open.aio("/f") as file:
            return [line async for line in file]

    assert asyncio.run(use()) == ["a\n", "b\n"]


# One file up and down


def test_a_file_goes_up_and_down(files: shoal.FileSystem, tmp_path: Path) -> None:
    source = tmp_path / "in.bin"
    source.write_bytes(bytes(range(256)) * 20)
    seen: list[int] = []
    assert files.upload(source, "/app/", progress=seen.append).bytes == 5120
    assert files.read_bytes("/app/in.bin") == source.read_bytes()
    assert seen[-1] == 5120
    assert files.download("/app/in.bin", tmp_path / "out.bin") == shoal.Transfer(1, 5120)
    assert (tmp_path / "out.bin").read_bytes() == source.read_bytes()
    (tmp_path / "below").mkdir()
    files.download("/app/in.bin", tmp_path / "below")
    assert (tmp_path / "below" / "in.bin").stat().st_size == 5120


@pytest.mark.parametrize("now", [b"B" * 100, b""], ids=len)
def test_a_download_is_of_one_file(lab: ClientLab, files: shoal.FileSystem, tmp_path: Path, now: bytes) -> None:
    files.write_bytes("/f", b"A" * 100)
    agent = asyncio.run(lab.fake.agent(lab.fake.named("agent")[0]))
    assert isinstance(agent, FakeAgent)

    def replace(received: int) -> None:
        if received == 32:
            agent.files["/f"] = now
            lab.fake.fail_next("read", Unavailable("lost"))

    with pytest.raises(shoal.FailedPrecondition) as caught:
        files.download("/f", tmp_path / "f", progress=replace)
    assert caught.value.state == "changed"
    assert list(tmp_path.iterdir()) == []


def test_a_download_may_have_the_longest_name(files: shoal.FileSystem, tmp_path: Path) -> None:
    files.write_bytes("/f", b"x")
    target = tmp_path / ("n" * 255)
    files.download("/f", target)
    files.download("/f", target)  # and replaces what is there
    assert target.read_bytes() == b"x"
    assert list(tmp_path.iterdir()) == [target]


def test_what_is_left_of_a_file_is_read_up_to_a_bound(files: shoal.FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal.client import sandbox_file

    monkeypatch.setattr(sandbox_file, "_MOST_REST", 100)
    files.write_bytes("/f", bytes(101))
    with files.open("/f", "rb") as file, pytest.raises(shoal.QuotaExceeded) as caught:
        file.read()
    assert caught.value.field == "size"
    with files.open("/f", "rb") as file:
        assert (file.read(1), file.read()) == (b"\0", bytes(100))


def test_a_download_beyond_its_bound_leaves_nothing(files: shoal.FileSystem, tmp_path: Path) -> None:
    files.write_bytes("/f", bytes(1000))
    with pytest.raises(shoal.QuotaExceeded) as caught:
        files.download("/f", tmp_path / "f", max_bytes=999)
    assert caught.value.field == "max_bytes"
    with pytest.raises(shoal.InvalidRequest) as wrong:
        files.download("/f", tmp_path / "no" / "f")
    assert wrong.value.field == "local"
    assert list(tmp_path.iterdir()) == []
