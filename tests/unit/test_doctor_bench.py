"""`shoal doctor --bench`: figures with bounds, and what cannot be measured says why."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from shoal.cluster.local import bench
from shoal.cluster.local.bench import Measure


def test_a_figure_is_judged_by_its_bound() -> None:
    assert Measure("x", 3.0, "ms", 1.0, 3.0, "").ok
    assert not Measure("x", 3.1, "ms", 1.0, 3.0, "").ok
    assert not Measure("x", 99.0, "MiB/s", 500, 100, "", more=True).ok
    assert Measure("x", 100.0, "MiB/s", 500, 100, "", more=True).ok
    assert not Measure("x", None, "ms", 1.0, 3.0, "do that").ok
    assert Measure("x", None, "ms", 1.0, 3.0, "do that").to_dict()["ok"] is False


def test_a_machine_has_figures_and_nothing_is_left(tmp_path: Path) -> None:
    found = [bench._fork(), bench._sync(tmp_path), bench._processor()]
    assert all(measure.value is not None and measure.value > 0 for measure in found)
    assert all(measure.remedy for measure in found)


def test_what_cannot_be_measured_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(command: list[str], **_: Any) -> None:
        raise subprocess.CalledProcessError(32, command, stderr=b"mount: unknown filesystem type")

    monkeypatch.setattr(subprocess, "run", refuse)
    told = bench._overlay(tmp_path)
    assert (told.value, told.ok) == (None, False)
    assert "unknown filesystem" in told.detail
