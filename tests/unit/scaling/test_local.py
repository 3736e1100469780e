"""Pretend machines: what is on record of them, without starting any."""

from __future__ import annotations

import fcntl
import os
import time
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from shoal.cluster.scaling import local
from shoal.cluster.scaling.contract import MachineState, Misconfigured, NoCapacity, Order, RegionDown
from shoal.cluster.scaling.local import RECORD, LocalRegion
from shoal.cluster.scaling.spec import LocalRegionSpec, LocalTypeSpec


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(what, machine) of the processes that would have been started."""
    found: list[tuple[str, str]] = []
    monkeypatch.setattr(local, "_run", lambda _state, directory, what: found.append((what, directory.name)))
    return found


@pytest.fixture
def eu(tmp_path: Path, runs: list[tuple[str, str]]) -> LocalRegion:
    (tmp_path / "scaling").mkdir()
    return LocalRegion("eu", LocalRegionSpec(types={"cpu": LocalTypeSpec(cpus=1, memory=1024, max=9)}), tmp_path)


def fail(tmp_path: Path, text: str) -> None:
    (tmp_path / "scaling" / "faults.json").write_text(text)


def test_each_machine_has_a_network_of_its_own_and_is_on_record_first(
    eu: LocalRegion, tmp_path: Path, runs: list[tuple[str, str]]
) -> None:
    launched = eu.launch(Order("eu.cpu", 3, "token", {"tag": "value"}))
    records = [RECORD.validate_json(path.read_bytes()) for path in tmp_path.glob("m/*/record.json")]
    networks = [IPv4Network(record.subnet) for record in records]
    assert len(runs) == len(launched) == len(records) == 3
    assert not any(one.overlaps(other) for one in networks for other in networks if one is not other)
    assert all(len(record.bridge) <= 12 for record in records)
    assert [(each.state, each.tags) for each in eu.machines()] == [(MachineState.STARTING, {"tag": "value"})] * 3
    assert LocalRegion("us", eu._spec, tmp_path).machines() == []


def test_an_end_that_was_killed_is_asked_for_again(
    eu: LocalRegion, tmp_path: Path, runs: list[tuple[str, str]]
) -> None:
    (machine,) = eu.launch(Order("eu.cpu", 1, "token"))
    eu.terminate([machine.id, "local-000000"])
    assert [what for what, _ in runs] == ["join", "end"]
    (path,) = tmp_path.glob("m/*/ending")
    assert eu.machines()[0].state is MachineState.TERMINATING, "its process starts"
    os.utime(path, (time.time() - 60, time.time() - 60))
    with path.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert eu.machines()[0].state is MachineState.TERMINATING, "its process is at it"
    assert eu.machines()[0].state is not MachineState.TERMINATING


def test_what_goes_wrong_is_what_the_test_says(eu: LocalRegion, tmp_path: Path) -> None:
    fail(tmp_path, '{"eu": {"launch": "no_capacity", "machines": "region_down"}, "us": {}}')
    with pytest.raises(NoCapacity):
        eu.launch(Order("eu.cpu", 1, "token"))
    with pytest.raises(RegionDown):
        eu.machines()
    fail(tmp_path, '{"eu": {"notices": {"local-1": 60}}}')
    assert [(each.machine_id, each.seconds) for each in eu.notices()] == [("local-1", 60.0)]
    fail(tmp_path, "{")
    assert eu.machines() == []
    with pytest.raises(Misconfigured):
        eu.launch(Order("eu.none", 1, "token"))


def test_what_a_cut_short_launch_left_is_removed(eu: LocalRegion, tmp_path: Path) -> None:
    (tmp_path / "m" / "abcdef").mkdir(parents=True)
    assert eu.machines() == []
    local.await_gone(tmp_path, time.monotonic() + 1)
    assert not (tmp_path / "m").exists()
