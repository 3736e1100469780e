"""Emptying hostile trees."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.actors.engines.empty_tree import empty_tree


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 8, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def nest(root: Path, depth: int) -> None:
    """Directories in each other, deeper than a path may be long."""
    inside = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d" * 50, dir_fd=inside)
        deeper = os.open("d" * 50, os.O_RDONLY, dir_fd=inside)
        os.close(inside)
        inside = deeper
    os.close(os.open("file", os.O_CREAT, dir_fd=inside))
    os.close(inside)


@pytest.mark.usefixtures("few_descriptors")
def test_a_tree_of_any_depth_is_emptied(tmp_path: Path) -> None:
    nest(tmp_path, 3000)
    empty_tree(tmp_path)
    assert os.listdir(tmp_path) == []


def test_any_name_is_removed_and_no_link_is_followed(tmp_path: Path) -> None:
    root, kept = tmp_path / "tree", tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    (root / "a" / "b" / "c").mkdir(parents=True)
    (root / "empty").mkdir(mode=0)
    for directory in (root, root / "a" / "b"):
        for name in (b"\xff\n", b"-rf", b" "):
            os.close(os.open(os.fsencode(directory) + b"/" + name, os.O_CREAT))
            os.mkdir(os.fsencode(directory) + b"/\xfe" + name)
        (directory / "out").symlink_to(kept)
        os.mkfifo(directory / "pipe")
    empty_tree(root)
    assert os.listdir(root) == []
    assert (kept / "file").exists()


def test_two_may_empty_it_at_once(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"d{number % 7}" / f"e{number % 20}" / f"f{number}").mkdir(parents=True)
    errors: list[OSError] = []

    def empty() -> None:
        try:
            empty_tree(tmp_path)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=empty) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.listdir(tmp_path) == []
    assert errors == []
