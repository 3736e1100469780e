"""What containers mount of the node's lies in a file system of its own, closed to every other account."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shoal.actors.node.mount_sources import MountSources
from shoal.model.errors import FailedPrecondition
from shoal.model.private_directory import make_private_directory, open_to_others

KEY = "c-0123"

needs_root = pytest.mark.usefixtures("as_root")  # mounts a file system


@needs_root
def test_paths_in_it_are_short_and_do_not_tell_the_key(tmp_path: Path) -> None:
    sources = MountSources(tmp_path / "cluster")
    sources.open()
    try:
        directory = sources.make(KEY, b"s" * 32)
        agent = sources.put("agent", b"program", 0o555)
        sources.open()
        assert sources.root.is_mount()
        assert (sources.links / KEY).resolve() == directory
        assert KEY not in str(directory)
        assert directory.parent == agent.parent == sources.root
        assert (directory.stat().st_mode & 0o777, agent.stat().st_mode & 0o777) == (0o755, 0o555)
        for closed in (sources.root, sources.links, sources.root.parent):
            assert open_to_others(closed) is None
        sources.remove(KEY)
        sources.remove(KEY)
        assert list(sources.links.iterdir()) == []
        assert list(sources.root.iterdir()) == [agent]
    finally:
        sources.close()
    assert not sources.root.parent.exists()
    sources.close()


def test_a_changed_file_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    sources = MountSources(tmp_path)
    sources.root.mkdir()
    first = sources.put("agent", b"one")
    with first.open("rb") as mounted:
        assert sources.put("agent", b"two").read_bytes() == b"two"
        assert mounted.read() == b"one", "a container that runs keeps its own"


def test_a_directory_is_closed_and_a_foreign_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "a" / "b"
    directory.mkdir(parents=True)
    directory.chmod(0o777)
    assert "0777" in (open_to_others(directory) or "")
    make_private_directory(directory)
    assert open_to_others(directory) is None
    assert open_to_others(tmp_path / "absent") is None
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(FailedPrecondition):
        make_private_directory(directory)
