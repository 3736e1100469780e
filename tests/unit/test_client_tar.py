"""Trees as tar streams, above all those that a hostile sandbox sends."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shoal.client.tar_trees import Transfer, pack, unpack
from shoal.model.errors import FailedPrecondition, Internal, QuotaExceeded

Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, link, len(content), mode
    return info, content


def archive(*members: Member, form: int = tarfile.PAX_FORMAT) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return made.getvalue()


def puller(data: bytes, step: int) -> Callable[[], bytes]:
    pieces: Iterator[bytes] = (data[i : i + step] for i in range(0, len(data), step))
    return lambda: next(pieces, b"")


def take(data: bytes, root: Path, *, step: int = 1000, max_bytes: int = 1 << 20, max_files: int = 1000) -> Transfer:
    return unpack(puller(data, step), root, max_bytes=max_bytes, max_files=max_files)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    made.mkdir()
    return made


@pytest.mark.parametrize("step", [1, 511, 512, 1 << 20])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_a_tree_is_unpacked(root: Path, step: int, form: int) -> None:
    long = "deep/" * 30 + "name" if form != tarfile.USTAR_FORMAT else "deep/name"
    data = archive(
        member("dir", kind=tarfile.DIRTYPE, mode=0o700),
        member("dir/empty"),
        member("dir/script", b"#!/bin/sh\n", mode=0o755),
        member(long, b"x" * 1500),
        member("dir/link", kind=tarfile.SYMTYPE, link="../dir/script"),
        form=form,
    )
    transfer = take(data, root, step=step)
    assert (transfer.files, transfer.bytes, transfer.skipped) == (5, 1510, ())
    assert (root / "dir/script").read_bytes() == b"#!/bin/sh\n"
    assert stat.S_IMODE((root / "dir/script").stat().st_mode) & 0o700 == 0o700
    assert (root / long).read_bytes() == b"x" * 1500
    assert (root / "dir/link").readlink() == Path("../dir/script")
    assert (root / "dir/empty").stat().st_size == 0


@pytest.mark.parametrize("name", ["/etc/passwd", "../out", "a/../../out", "..", "a/.."])
def test_names_that_lead_out_are_refused(root: Path, name: str) -> None:
    with pytest.raises(Internal, match="leads out"):
        take(archive(member(name, b"evil")), root)
    assert list(root.parent.iterdir()) == [root]


@pytest.mark.parametrize("target", ["/etc", "..", "../..", "a/../../.."])
def test_links_that_lead_out_are_left_out_and_told(root: Path, target: str) -> None:
    data = archive(member("link", kind=tarfile.SYMTYPE, link=target), member("file", b"fine"))
    assert take(data, root).skipped == ("link",)
    assert [path.name for path in root.iterdir()] == ["file"]


def test_links_that_lead_out_only_together_are_left_out(root: Path) -> None:
    deep = "a/b/c/d/e/f/g/h"
    data = archive(
        *[member(deep[:end], kind=tarfile.DIRTYPE) for end in range(1, len(deep) + 1, 2)],
        member(f"{deep}/up", kind=tarfile.SYMTYPE, link="../" * 8 + "."),  # the tree itself: it stays
        member("report.txt", kind=tarfile.SYMTYPE, link=f"{deep}/up/{'../' * 9}etc/passwd"),
        member("around", kind=tarfile.SYMTYPE, link=f"{deep}/up/../../beside"),
        member("a/beside", kind=tarfile.SYMTYPE, link="../a/b"),
    )
    assert take(data, root).skipped == ("report.txt", "around")
    for path in root.rglob("*"):
        assert path.resolve().is_relative_to(root.resolve())


def test_nothing_is_written_through_a_link(root: Path) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    (root / "theirs").symlink_to(outside)  # left from before, or made by somebody else
    with pytest.raises(Internal):
        take(archive(member("theirs/evil", b"x")), root)
    inside = archive(
        member("d", kind=tarfile.DIRTYPE), member("l", kind=tarfile.SYMTYPE, link="d"), member("l/evil", b"x")
    )
    with pytest.raises(Internal):
        take(inside, root)
    victim = outside / "victim"
    victim.write_text("mine")
    (root / "file").symlink_to(victim)
    take(archive(member("file", b"theirs")), root)
    assert victim.read_text() == "mine"
    assert (root / "file").read_bytes() == b"theirs"
    assert [path.name for path in outside.iterdir()] == ["victim"]


def test_special_files_and_hard_links_are_left_out_and_special_bits_dropped(root: Path) -> None:
    data = archive(
        member("fifo", kind=tarfile.FIFOTYPE),
        member("device", kind=tarfile.CHRTYPE),
        member("hard", kind=tarfile.LNKTYPE, link="/etc/passwd"),
        member("setuid", b"x", mode=0o4755),
    )
    assert take(data, root).skipped == ("fifo", "device", "hard")
    assert stat.S_IMODE((root / "setuid").stat().st_mode) & 0o7000 == 0


def test_bounds_hold(root: Path) -> None:
    with pytest.raises(QuotaExceeded) as caught:
        take(archive(*[member(f"f{n}") for n in range(4)]), root, max_files=3)
    assert caught.value.field == "max_files"
    huge, _ = member("huge")
    huge.size = 1 << 58
    with pytest.raises(QuotaExceeded) as caught:
        take(huge.tobuf(tarfile.PAX_FORMAT), root)
    assert caught.value.field == "max_bytes"
    assert not (root / "huge").exists()


def _extended(content: bytes) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)


@pytest.mark.parametrize(
    "data",
    [
        b"x" * 512,
        archive(member("f", b"x" * 5000))[:2000],
        archive(member("f", b"x"))[:300],
        _extended(b"x" * (65 << 10)),
        _extended(b"9 a=b\n"),
        _extended(b"-9 a=bcd\n"),
        _extended(b"nonsense"),
        _extended(b"14 size=-2000\n") + archive(member("f")),
        _extended(b"18 path=../../out\n") + archive(member("f")),
        _extended(b"12 path=a\0b\n") + archive(member("f")),
        archive(member("", b"x")),
        archive(member("a/" * 300 + "b", b"x")),
    ],
    ids=lambda data: f"{len(data)} bytes",
)
def test_malformed_archives_are_told(root: Path, data: bytes) -> None:
    with pytest.raises(Internal, match="malformed archive"):
        take(data, root)
    assert list(root.parent.iterdir()) == [root]


def test_packing_is_the_inverse(tmp_path: Path, root: Path) -> None:
    source = tmp_path / "source"
    (source / "a/b").mkdir(parents=True)
    (source / "a/b/empty").touch()
    (source / "a/big").write_bytes(os.urandom(3 << 20))
    (source / "a/run").write_text("x")
    (source / "a/run").chmod(0o700)  # which no umask takes anything from
    (source / os.fsdecode(b"not \xff utf-8")).write_text("y")
    (source / ("n" * 200)).write_text("z")
    (source / "link").symlink_to("a/run")
    os.mkfifo(source / "fifo")
    skipped: list[str] = []
    pieces = iter(pack(source, skipped))
    transfer = unpack(lambda: next(pieces, b""), root, max_bytes=1 << 30, max_files=100)
    assert skipped == ["fifo"]
    assert transfer.files == 8
    (source / "fifo").unlink()
    names = sorted(path.relative_to(source) for path in source.rglob("*"))
    assert sorted(path.relative_to(root) for path in root.rglob("*")) == names
    for name in names:
        if not (source / name).is_symlink() and (source / name).is_file():
            assert (root / name).read_bytes() == (source / name).read_bytes()
            assert (root / name).stat().st_mode == (source / name).stat().st_mode
    assert (root / "link").readlink() == Path("a/run")


def test_python_itself_can_read_what_was_packed(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("hello")
    with tarfile.open(fileobj=io.BytesIO(b"".join(pack(tmp_path, [])))) as tar:
        assert tar.getnames() == ["f"]


def test_a_file_that_shrinks_is_told_and_one_that_grows_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal.client import tar_trees

    file = tmp_path / "f"
    file.write_bytes(b"x" * 100)
    header = tar_trees._header

    def after(change: Callable[[], object]) -> None:
        def changed(path: Path, name: str, status: os.stat_result) -> tarfile.TarInfo | None:
            made = header(path, name, status)
            change()
            return made

        monkeypatch.setattr(tar_trees, "_header", changed)

    after(lambda: file.write_bytes(b"y" * 200))
    with tarfile.open(fileobj=io.BytesIO(b"".join(pack(tmp_path, [])))) as tar:
        extracted = tar.extractfile("f")
        assert extracted is not None
        assert extracted.read() == b"y" * 100
    after(lambda: file.write_bytes(b"z"))
    with pytest.raises(FailedPrecondition):
        list(pack(tmp_path, []))


def test_of_a_tree_of_empty_files_not_all_is_held_at_once(tmp_path: Path) -> None:
    for number in range(1200):  # a name of this length takes two blocks more
        (tmp_path / f"{number:0200}").touch()
    sizes = [len(piece) for piece in pack(tmp_path, [])]
    assert sum(sizes) > 3 << 19
    assert max(sizes) < 3 << 19
