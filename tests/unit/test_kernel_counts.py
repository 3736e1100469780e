"""The kernel's settings that one sandbox must not be able to use up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shoal.actors.engines.shared_counts import bound_terminals, queue_limits
from shoal.actors.node import kernel_counts
from shoal.actors.node.kernel_counts import NO_LIMIT, KernelCount

COUNTS = (KernelCount("fs.small", 100), KernelCount("fs.pipes-soft", NO_LIMIT), KernelCount("fs.absent", 100))


def test_settings_are_raised_and_never_lowered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_counts, "_SETTINGS", tmp_path)
    (tmp_path / "fs").mkdir()
    (tmp_path / "fs/small").write_text("99\n")
    (tmp_path / "fs/pipes-soft").write_text("16384\n")
    assert kernel_counts.too_small(COUNTS) == list(COUNTS[:2])
    assert kernel_counts.remedy(COUNTS[:2]) == "sysctl -w fs.small=100 fs.pipes-soft=0"
    assert kernel_counts.raise_counts(COUNTS) == []
    assert [(tmp_path / name).read_text() for name in ("fs/small", "fs/pipes-soft")] == ["100\n", "0\n"]
    (tmp_path / "fs/small").write_text("1000\n")
    assert kernel_counts.raise_counts(COUNTS) == []
    assert (tmp_path / "fs/small").read_text() == "1000\n"


def test_the_machines_own_terminals_are_left_alone() -> None:
    with pytest.raises(OSError, match="machine"):
        bound_terminals(os.getpid())


def test_half_of_what_is_queued_stays_for_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda kind: (1000, 2000))
    assert queue_limits() == {"sigpending": 500, "msgqueue": 500}
    monkeypatch.setattr("resource.getrlimit", lambda kind: (-1, -1))
    assert queue_limits() == {}
