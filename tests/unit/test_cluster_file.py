"""`cluster.json`: whole or not at all, for its owner only, and told apart from nonsense."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.model import cluster_file
from shoal.model.cluster_file import ClusterFile, ProcessRef
from shoal.model.errors import FailedPrecondition

CLUSTER = ClusterFile(
    cluster="0a1b2c3d",
    ray_address="127.0.0.1:6379",
    engine_address="unix:///run/x.sock",
    auth_token_path="/state/auth_token",
    secret_path="/state/secret",
    run_dir="/run/x",
    temp_dir="/state/ray",
    started_at=1.5,
    engine=ProcessRef(7, 99),
    ray=(ProcessRef(8, 100), ProcessRef(9, 101)),
    settings={"engine": "docker"},
)


@pytest.mark.parametrize("cluster", [CLUSTER, replace(CLUSTER, engine=None, ray=())])
def test_comes_back_as_it_was(cluster: ClusterFile, tmp_path: Path) -> None:
    cluster_file.write(tmp_path, cluster)
    assert cluster_file.read(tmp_path) == cluster


def test_is_for_its_owner_only_and_leaves_nothing_beside(tmp_path: Path) -> None:
    cluster_file.write(tmp_path, CLUSTER)
    cluster_file.write(tmp_path, CLUSTER)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600


def test_none_where_there_is_none(tmp_path: Path) -> None:
    assert cluster_file.read(tmp_path) is None
    assert cluster_file.read(tmp_path / "no" / "such") is None
    cluster_file.remove(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"version": 1}', '{"version": 99}', "\xff"])
def test_nonsense_names_the_remedy(text: str, tmp_path: Path) -> None:
    cluster_file.path_in(tmp_path).write_bytes(text.encode("latin-1"))
    with pytest.raises(FailedPrecondition, match="shoal down"):
        cluster_file.read(tmp_path)


def test_members_of_a_newer_patch_are_passed_over(tmp_path: Path) -> None:
    cluster_file.write(tmp_path, CLUSTER)
    path = cluster_file.path_in(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "later": 1}))
    assert cluster_file.read(tmp_path) == CLUSTER


def test_a_reader_never_sees_half_of_it(tmp_path: Path) -> None:
    cluster_file.write(tmp_path, CLUSTER)
    stop = threading.Event()

    def rewrite() -> None:
        while not stop.is_set():
            cluster_file.write(tmp_path, CLUSTER)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        assert all(cluster_file.read(tmp_path) == CLUSTER for _ in range(300))
    finally:
        stop.set()
        writer.join()


def test_a_driver_on_the_loopback_keeps_ray_from_looking_for_another_address() -> None:
    here, there = CLUSTER, replace(CLUSTER, ray_address="10.0.0.5:6379")
    assert cluster_file.ray_environment(here)["RAY_AUTH_TOKEN_PATH"] == "/state/auth_token"
    assert cluster_file.ray_environment(here).keys() - cluster_file.ray_environment(there).keys() == {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    }
