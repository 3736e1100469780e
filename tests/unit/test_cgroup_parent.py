"""The control group above all sandboxes of a machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.actors.engines import cgroup_parent


def test_a_quarter_of_what_the_kernel_can_have_is_left_to_the_machine(tmp_path: Path) -> None:
    (tmp_path / "pid_max").write_text("32768\n")
    (tmp_path / "threads-max").write_text("190000\n")
    assert cgroup_parent.most_pids(tmp_path) == 24576
    (tmp_path / "threads-max").write_text("8000\n")
    assert cgroup_parent.most_pids(tmp_path) == 6000


def mounts(kind: str, top: Path, root: str = "/") -> str:
    options = "rw,pids" if kind == "cgroup" else "rw"
    return f"40 31 0:36 {root} {top} rw,relatime - {kind} {kind} {options}\n"


@pytest.mark.parametrize("kind", ["cgroup", "cgroup2"])
def test_the_group_is_at_the_top_and_comes_back(tmp_path: Path, kind: str) -> None:
    children = tmp_path / "cgroup.subtree_control"
    children.write_text("cpu memory")
    directory = cgroup_parent._directory(mounts(kind, tmp_path))
    assert directory == tmp_path / "shoal"
    assert children.read_text() == {"cgroup": "cpu memory", "cgroup2": "+pids"}[kind]
    parent = cgroup_parent.CgroupParent("/shoal", 24576, directory)
    parent.ensure()
    assert (directory / "pids.max").read_text() == "24576"
    (directory / "pids.max").unlink()
    cgroup_parent.remove(mounts(kind, tmp_path))
    cgroup_parent.remove(mounts(kind, tmp_path))
    assert not directory.exists()
    parent.ensure()
    assert (directory / "pids.max").read_text() == "24576"
    cgroup_parent.remove(mounts(kind, tmp_path))  # as one that is not empty
    assert directory.exists()


def test_without_the_top_there_is_no_group(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="not in sight"):
        cgroup_parent._directory(mounts("cgroup", tmp_path, "/docker/1234"))
    assert cgroup_parent.prepare("none", 100) is None
