"""Keeping Ray's monitor alive, with another program in its place."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.cluster.local import processes
from shoal.cluster.scaling import monitor as module
from shoal.cluster.scaling.monitor import Monitor


class Idle(Monitor):
    """Runs a program that does nothing, under the monitor's name and arguments."""

    def __init__(self, config: Path) -> None:
        super().__init__(config, "127.0.0.1:1", config.parent)
        name, *rest = self._arguments[3:]
        self._arguments = [sys.executable, "-c", "import time; time.sleep(60)", name, *rest]


@pytest.fixture
def monitor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Idle]:
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.0)
    made = Idle(tmp_path / "ray.yaml")
    yield made
    made.stop()


def until_dead(pid: int | None) -> None:
    assert pid is not None
    deadline = time.monotonic() + 10
    while processes.ref(pid) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kill(monitor: Monitor) -> int:
    pid = monitor.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    while monitor.pid is not None:
        time.sleep(0.01)
    return pid


def test_it_is_started_anew_when_it_was_killed(monitor: Idle) -> None:
    monitor.keep({}, "v1")
    killed = kill(monitor)
    monitor.keep({}, "v1")
    assert monitor.pid not in (None, killed)


def test_it_is_started_anew_when_the_description_has_changed_and_not_otherwise(monitor: Idle) -> None:
    monitor.keep({}, "v1")
    first = monitor.pid
    monitor.keep({}, "v1")
    assert monitor.pid == first
    monitor.keep({}, "v2")
    assert monitor.pid not in (None, first)
    until_dead(first)


def test_one_that_an_earlier_scaler_left_is_ended_first(monitor: Idle, tmp_path: Path) -> None:
    earlier, other = Idle(tmp_path / "ray.yaml"), Idle(tmp_path / "another" / "ray.yaml")
    earlier.keep({}, "v1")
    other.keep({}, "v1")
    left, alone = earlier.pid, other.pid
    monitor.keep({}, "v1")
    until_dead(left)
    assert (earlier.pid, monitor.pid is None) == (None, False)
    assert other.pid == alone, "that of another cluster"
    other.stop()


def test_one_that_ends_at_once_is_started_less_and_less_often(monitor: Idle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 100.0)
    monitor._pause_s = 1.0
    monitor.keep({}, "v1")
    kill(monitor)
    monitor.keep({}, "v1")
    assert (monitor.pid, monitor.starts) == (None, 1), "not at once"
