"""A cluster that another release of Shoal has started, with a setting that there is none of any more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shoal.cluster.local import state as local_state
from shoal.cluster.local import up as local_cluster
from shoal.cluster.local.checks import Check
from shoal.cluster.local.doctor import examine
from shoal.model import cluster_file
from shoal.model.cluster_file import ClusterFile
from shoal.model.errors import FailedPrecondition
from shoal.model.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path / "state", run_dir=tmp_path / "run")


@pytest.fixture
def cluster(settings: Settings) -> ClusterFile:
    carried = settings.to_dict()
    carried["node"]["of_another_time"] = 1
    found = ClusterFile(
        cluster=local_state.identity(settings.state_dir),
        ray_address="127.0.0.1:1",
        engine_address="unix:///nowhere",
        auth_token_path="",
        secret_path="",
        run_dir=str(settings.run_dir),
        temp_dir=str(settings.state_dir / "ray" / "s"),
        started_at=0.0,
        settings=carried,
        api_listens="127.0.0.1:1",
        api_url="http://127.0.0.1:1",
    )
    cluster_file.write(settings.state_dir, found)
    return found


@pytest.mark.parametrize(
    "call", [local_cluster.up, local_cluster.roll, lambda settings: local_cluster.health(_read(settings))]
)
def test_whoever_needs_its_settings_is_told_to_take_it_down(
    call: Callable[[Settings], object], settings: Settings, cluster: ClusterFile
) -> None:
    with pytest.raises(FailedPrecondition, match=r"node\.of_another_time.*run `shoal down`"):
        call(settings)
    assert _read(settings) == cluster


def test_doctor_names_the_remedy(settings: Settings, cluster: ClusterFile) -> None:
    check = next(check for check in examine(settings) if check.name == "cluster.json")
    assert not check.ok
    assert "of_another_time" in check.detail
    assert check.remedy == "shoal down && shoal up"


def test_doctor_tells_which_directory_other_accounts_may_enter(settings: Settings) -> None:
    closed = local_state.temp_dir(settings).parent

    def check() -> Check:
        return next(check for check in examine(settings) if check.name == "closed directories")

    assert check().ok, "there is none yet"
    closed.mkdir(parents=True, mode=0o777)
    closed.chmod(0o777)
    assert not check().ok
    assert str(closed) in check().detail
    assert f"chmod 700 {closed}" in check().remedy
    closed.chmod(0o700)
    assert check().ok
    settings.state_dir.chmod(0o777)
    assert "everybody may write" in check().detail


def test_it_is_taken_down_by_the_settings_of_now(settings: Settings, cluster: ClusterFile) -> None:
    found = local_cluster._understood(cluster, settings)
    assert local_state.settings_of(found) == settings
    assert found.api_url == cluster.api_url
    assert local_cluster._understood(found, Settings()) == found


def _read(settings: Settings) -> ClusterFile:
    found = cluster_file.read(settings.state_dir)
    assert found is not None
    return found
