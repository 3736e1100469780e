"""`shoal cluster up` and `status`: what they refuse, and what they leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.cluster.local import up as local_cluster
from shoal.cluster.scaling import commands, lifecycle
from shoal.cluster.scaling.files import ScalingFiles
from shoal.model.errors import FailedPrecondition, InvalidRequest, Unavailable
from shoal.model.settings import Settings
from tests.unit.scaling.test_reading import GOOD


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path / "state", run_dir=tmp_path / "run")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[local_cluster.UpOptions]:
    """What heads were started with, in place of heads."""
    found: list[local_cluster.UpOptions] = []
    monkeypatch.setattr(local_cluster, "up", lambda _settings, options, _report: found.append(options))
    return found


def written(settings: Settings, text: str) -> Path:
    path = settings.state_dir.parent / "cluster.yaml"
    path.write_text(text)
    return path


def test_a_changed_file_is_taken_over_unless_machines_would_be_lost_by_it(
    settings: Settings, started: list[local_cluster.UpOptions]
) -> None:
    files = ScalingFiles.below(settings.state_dir)
    commands.up(settings, written(settings, GOOD))
    assert started[0].address == "127.0.0.2", "nodes join there"
    commands.up(settings, written(settings, GOOD.replace("max: 3", "max: 5")))
    changed = files.read_cluster()
    assert changed is not None
    assert changed.regions["eu"].types["cpu"].max == 5
    for wrong, field in (
        (GOOD.replace("name: prod", "name: other"), "name"),
        (GOOD[: GOOD.index("  us:")], "regions.us"),
    ):
        with pytest.raises(InvalidRequest) as raised:
            commands.up(settings, written(settings, wrong))
        assert raised.value.field == field
    assert files.read_cluster() == changed


def test_a_head_that_does_not_start_leaves_no_description(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise Unavailable("not today")

    monkeypatch.setattr(local_cluster, "up", fail)
    with pytest.raises(Unavailable):
        commands.up(settings, written(settings, GOOD))
    assert not lifecycle.described(settings.state_dir)
    with pytest.raises(FailedPrecondition):
        commands.status(settings.state_dir)


def test_a_description_of_another_version_says_what_to_do(
    settings: Settings, started: list[local_cluster.UpOptions]
) -> None:
    commands.up(settings, written(settings, GOOD))
    ScalingFiles.below(settings.state_dir).cluster.write_text('{"provider": "local", "unknown": 1}')
    with pytest.raises(FailedPrecondition):
        commands.status(settings.state_dir)


def test_down_without_machines_forgets(settings: Settings, started: list[local_cluster.UpOptions]) -> None:
    commands.up(settings, written(settings, GOOD))
    assert lifecycle.end_machines(settings.state_dir, forget=True) == []
    assert not lifecycle.described(settings.state_dir)
    assert lifecycle.end_machines(settings.state_dir, forget=True) == []
