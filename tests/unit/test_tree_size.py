"""Counting hostile trees."""

from __future__ import annotations

import gc
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.actors.engines import tree_size as module
from shoal.actors.engines.tree_size import ENTRY, tree_size

HUGE = 1 << 40


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    root = tmp_path / "tree"
    root.mkdir()
    yield root
    # Deeper than Python's own way of removing trees bears.
    subprocess.run(["rm", "-rf", str(root)], check=True)


def kernel_size(root: Path) -> int:
    """What `du` says, without the root's own directory, as ours counts what is below it."""
    said = subprocess.run(["du", "-s", "-B1", str(root)], check=True, capture_output=True, text=True).stdout
    return int(said.split()[0]) - root.stat().st_blocks * 512


def test_it_agrees_with_du(tree: Path) -> None:
    for number in range(20):
        directory = tree / f"d{number % 4}" / f"e{number}"
        directory.mkdir(parents=True)
        (directory / "file").write_bytes(b"x" * 5000 * number + b"x")
    assert tree_size(tree, limit=HUGE) == kernel_size(tree)


def test_a_sparse_file_counts_what_it_takes(tree: Path) -> None:
    with (tree / "sparse").open("wb") as file:
        file.truncate(1 << 34)
    assert tree_size(tree, limit=HUGE) <= ENTRY


def test_a_file_with_several_names_counts_once(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "a").write_bytes(b"x" * 100_000)
    alone = tree_size(tree, limit=HUGE)
    for number in range(5):
        os.link(tree / "a", tree / f"b{number}")
    assert tree_size(tree, limit=HUGE) == alone
    monkeypatch.setattr(module, "LINKS_REMEMBERED", 0)
    assert tree_size(tree, limit=HUGE) == 6 * alone


def test_links_are_never_followed(tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "large").write_bytes(b"x" * 1_000_000)
    for name, target in (
        ("up", ".."),
        ("out", str(outside)),
        ("self", "."),
        ("root", "/"),
        ("file", str(outside / "large")),
    ):
        (tree / name).symlink_to(target)
    assert tree_size(tree, limit=HUGE) <= 5 * 4096


def test_it_stops_beyond_the_limit(tree: Path) -> None:
    for number in range(300):
        (tree / f"f{number}").write_bytes(b"x" * 4096)
    assert 10_000 < tree_size(tree, limit=10_000) <= 10_000 + 4096


def test_countless_empty_files_have_a_size(tree: Path) -> None:
    for number in range(100):
        (tree / f"f{number}").touch()
    assert tree_size(tree, limit=HUGE) == 100 * ENTRY


def test_more_directories_than_can_be_kept_in_mind_are_too_many(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING", 10)
    for number in range(12):
        (tree / f"d{number}").mkdir()
    assert tree_size(tree, limit=HUGE) > HUGE


def deepen(tree: Path, levels: int, name: str) -> None:
    """A chain of directories, longer than any path may be, with a file at its end."""
    fd = os.open(tree, os.O_DIRECTORY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=fd)
        deeper = os.open(name, os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    with os.fdopen(os.open("end", os.O_CREAT | os.O_WRONLY, dir_fd=fd), "wb") as file:
        file.write(b"x" * 1_000_000)
    os.close(fd)


def test_a_tree_deeper_than_paths_and_descriptors(tree: Path) -> None:
    levels = 3000
    deepen(tree, levels, "d" * 20)
    gc.collect()  # what earlier tests left may hold some
    before = len(os.listdir("/proc/self/fd"))
    assert 1_000_000 <= tree_size(tree, limit=HUGE) <= 1_000_000 + 4096 * (levels + 1)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_odd_names(tree: Path) -> None:
    for name in (b"\xff\xfe", b"new\nline", b"-rf", b" ", b"x" * 255):
        directory = os.path.join(os.fsencode(tree), name)
        os.mkdir(directory)
        with open(os.path.join(directory, b"file"), "wb") as file:
            file.write(b"x" * 10_000)
    assert tree_size(tree, limit=HUGE) >= 5 * 10_000


def test_a_tree_that_changes_while_it_is_counted(tree: Path, tmp_path: Path) -> None:
    """Directories are moved, replaced by links and removed all the while: the count ends, and never counts what lies
    outside.
    """
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "large").write_bytes(b"x" * (64 << 20))
    stop = threading.Event()

    def disturb() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            deep = tree / f"a{number % 3}" / "b" / "c"
            deep.mkdir(parents=True, exist_ok=True)
            (deep / "f").write_bytes(b"x" * 100)
            moved = tree / f"moved{number % 5}"
            try:
                deep.rename(moved)
                (deep.parent / "c").symlink_to(outside)
            except OSError:
                # Rubble of an earlier turn.
                subprocess.run(["rm", "-rf", str(moved), str(deep)], check=True)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        sizes = [tree_size(tree, limit=HUGE) for _ in range(300)]
    finally:
        stop.set()
        thread.join()
    assert max(sizes) < 32 << 20


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        tree_size(tmp_path / "none", limit=1)
    (tmp_path / "link").symlink_to("/")
    with pytest.raises(NotADirectoryError):
        tree_size(tmp_path / "link", limit=1)
