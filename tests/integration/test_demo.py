"""The demo, as `make demo` runs it, on a real package and a real cluster."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import shoal
from examples.rollouts.package import VOLUME

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]  # it fetches a package

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def no_package(cluster: object) -> Iterator[None]:
    """The demo keeps its package: the sandbox through which it was put there would go on for a minute."""
    yield
    shoal.Volume.from_name(VOLUME).delete(now=True)


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "examples.rollouts", *arguments]
    environment = {**os.environ, "COLUMNS": "160"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def rollouts() -> list[str]:
    """The demo's sandboxes that live."""
    return [sandbox.id for sandbox in shoal.Sandbox.list() if sandbox.tags.get("job", "").startswith("rollouts-")]


def test_demo_rewards_what_its_authors_published_and_not_what_breaks_it(cluster: object) -> None:
    with start("--candidates", "4") as demo:
        output, errors = demo.communicate(timeout=300)
    assert demo.returncode == 0, errors
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if line.startswith("│")]
    candidates = {row[0]: row for row in rows if row[0].isdigit()}
    assert list(candidates) == ["0", "1", "2", "3"]
    assert candidates["0"][1:4] == ["(none: as published)", "1", "817 passed"]
    assert "0" in {row[2] for row in candidates.values()}
    assert all(re.fullmatch(r"line \d+: .+ → .+", row[1]) for number, row in candidates.items() if number != "0")
    for name in ("rollout", "exec"):
        (row,) = (row for row in rows if row[0] == name)
        assert row[1] == "4"
        assert all(re.fullmatch(r"[\d.]+( ms)?", cell) for cell in row[2:])
    assert output.count("reward ") >= 4  # without a terminal: a line per candidate as it goes
    assert rollouts() == []


@pytest.mark.long
def test_interrupted_demo_leaves_no_sandbox(cluster: object) -> None:
    with start("--candidates", "8", "--parallel", "4") as demo:
        deadline = time.monotonic() + 240
        while not rollouts():
            assert demo.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        demo.send_signal(signal.SIGINT)
        output, errors = demo.communicate(timeout=90)
    assert demo.returncode == 130, errors
    assert "Interrupted; the sandboxes are gone." in output
    assert "Traceback" not in output + errors
    assert rollouts() == []


def test_demo_without_a_cluster_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_STATE_DIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with start("--candidates", "2") as demo:
        output, errors = demo.communicate(timeout=60)
    assert demo.returncode == 1
    assert "run `shoal up`" in output
    assert "Traceback" not in output + errors
