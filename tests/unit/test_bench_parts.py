"""The bench's own parts: its arithmetic, its loops over real processes, its table and file."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections import Counter
from pathlib import Path

import pytest

from tests.bench import creates, execs, files, memory, table
from tests.bench.measures import Attempts, Measured, Measurements
from tests.bench.memory import Cost, Usage
from tests.bench.stats import Samples, samples, times_better
from tests.bench.subject import WORKLOAD, Box, Subject
from tests.bench.targets import at_least

AT_LEAST = at_least("docker")


class Here(Subject):
    """Boxes that are no boxes: processes and files of this machine. Counts what is made and what is closed."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self.made = 0
        self.open = 0
        self.most_open = 0
        self._lock = threading.Lock()

    def create(self, memory: int = 0) -> HereBox:
        with self._lock:
            self.made += 1
            self.open += 1
            self.most_open = max(self.most_open, self.open)
        return HereBox(self)

    def closed(self) -> None:
        with self._lock:
            self.open -= 1

    def close(self) -> None:
        assert self.open == 0


class HereBox(Box):
    def __init__(self, subject: Here) -> None:
        self._subject = subject

    def execute(self) -> None:
        subprocess.run(WORKLOAD, check=True)

    def write(self, path: str, data: bytes) -> None:
        (self._subject.directory / Path(path).name).write_bytes(data)

    def read(self, path: str) -> bytes:
        return (self._subject.directory / Path(path).name).read_bytes()

    def close(self) -> None:
        self._subject.closed()


class ForgetfulBox(HereBox):
    def read(self, path: str) -> bytes:
        return super().read(path)[:-1]


class BrokenBox(HereBox):
    def execute(self) -> None:
        raise RuntimeError("it does not run")


@pytest.fixture
def here(tmp_path: Path) -> Here:
    return Here("here", tmp_path)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execs, "LATENCY_WINDOW", 0.05)
    monkeypatch.setattr(execs, "RATE_WINDOW", 0.1)
    monkeypatch.setattr(files, "SIZE", 100_000)


def test_samples_tell_median_and_tail() -> None:
    found = samples("s", [3.0, 1.0, 2.0, 10.0])
    assert found.to_dict() == {"unit": "s", "n": 4, "min": 1.0, "median": 2.5, "p95": 10.0, "max": 10.0}


def test_larger_is_better_for_times_and_rates_alike() -> None:
    assert times_better(samples("s", [0.001]), samples("s", [0.050])) == pytest.approx(50)
    assert times_better(samples("/s", [1000]), samples("/s", [25])) == pytest.approx(40)
    with pytest.raises(ValueError, match="cannot be compared"):
        times_better(samples("s", [1]), samples("/s", [1]))


def test_exec_loops_time_every_call_and_close_every_box(here: Here) -> None:
    latency = execs.latency([here])["here"]
    assert len(latency.values) >= execs.ROUNDS
    assert all(value > 0.0001 for value in latency.values)
    rate = execs.rate([here], 3)["here"]
    assert rate.unit == "/s"
    assert rate.median > 10
    assert here.most_open == 3
    here.close()


def test_an_exec_that_fails_fails_the_measure_and_leaves_no_box(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    made = here.create

    def create(memory: int = 0) -> HereBox:
        made()
        return BrokenBox(here)

    monkeypatch.setattr(here, "create", create)
    for measure in (
        lambda: execs.latency([here]),
        lambda: execs.rate([here], 2),
        lambda: creates.to_first_exec(here, 64),
    ):
        with pytest.raises(RuntimeError, match="it does not run"):
            measure()
        here.close()


def test_create_loops_close_what_they_make(here: Here) -> None:
    cold = creates.cold([here], lambda: None)["here"]
    assert len(cold.values) == creates.COLD
    asked = []
    warm = creates.warm(here, lambda: asked.append(here.open))
    assert len(warm.values) == creates.WARM
    assert asked == [0] * creates.WARM  # nothing of the one before is left when the next is asked for
    before = here.made
    rate = creates.rate([here], lambda: None)["here"]
    assert len(rate.values) == creates.RATE_ROUNDS
    assert here.made - before == creates.RATE_ROUNDS * creates.RATE_CREATES + 2 * creates.RATE_CALLERS
    here.close()


def test_every_cold_create_has_a_shape_of_its_own(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[int] = []

    def create(memory: int = 0) -> HereBox:
        shapes.append(memory)
        here.open += 1
        return HereBox(here)

    monkeypatch.setattr(here, "create", create)
    creates.cold([here], lambda: None)
    creates.cold([here], lambda: None)
    assert len(set(shapes)) == len(shapes) == 2 * (creates.COLD + 1)


def test_files_are_compared_with_what_was_written(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    writes, reads = files.write_and_read([here])
    assert len(writes["here"].values) == len(reads["here"].values) == files.ROUNDS
    made = here.create

    def create(memory: int = 0) -> HereBox:
        made()
        return ForgetfulBox(here)

    monkeypatch.setattr(here, "create", create)
    with pytest.raises(RuntimeError, match="here read something else than it wrote"):
        files.write_and_read([here])
    here.close()


def test_usage_counts_the_processes_that_are_named() -> None:
    name = Path("/proc/self/comm").read_text("utf-8").strip()
    found = memory.usage({os.getpid(), 2**22 + 1})  # the other there cannot be
    assert found.processes == {name: 1}
    assert found.pss[name] > 1_000_000
    assert found.descriptors[name] >= len(os.listdir("/proc/self/fd")) - 1


def test_cost_is_the_difference_shared_out() -> None:
    before = Usage(Counter(a=5_000_000, gone=1_000_000), Counter(a=1, gone=1), Counter(a=10, gone=4))
    after = Usage(Counter(a=7_000_000, b=8_000_000), Counter(a=1, b=4), Counter(a=12, b=16))
    assert memory.cost(before, after, 4) == Cost(2.25, 0.75, 3.5, {"a": 0.5, "b": 2.0, "gone": -0.25})


def found(factor: float) -> Measurements:
    """Everything exactly at its target, times `factor`."""

    def by(key: str) -> dict[str, Samples]:
        if key.startswith(("exec_rate", "create_rate")):
            return {"docker-py": samples("/s", [10]), "shoal": samples("/s", [10 * AT_LEAST[key] * factor])}
        return {"docker-py": samples("s", [0.1]), "shoal": samples("s", [0.1 / AT_LEAST[key] / factor])}

    idle = {"shoal": Cost(60 / factor, 3, 20, {}), "docker-py": Cost(3, 2, 12, {})}
    return Measurements(tuple(Measured(key, f"measure {key}", by(key)) for key in AT_LEAST), idle)


def test_a_group_that_fails_takes_no_other_along_and_is_named() -> None:
    said: list[str] = []
    attempts = Attempts(said.append)
    for step in ("no disk", "no disk either"):
        with attempts.attempt("volumes"):
            raise RuntimeError(step)
    with attempts.attempt("http"):
        said.append("measured")
    assert attempts.failed == ["volumes"]
    told = table.to_dict(Measurements((), {}, failed=tuple(attempts.failed)), {}, 1.0)
    assert told["failed"] == ["volumes"]
    assert said == ["volumes failed: RuntimeError: no disk", "volumes failed: RuntimeError: no disk either", "measured"]


@pytest.mark.parametrize(("factor", "reached"), [(1.0, True), (1.5, True), (0.9, False)])
def test_targets_are_met_or_missed(factor: float, reached: bool) -> None:
    result = table.met(table.ratios(found(factor)), "docker")
    assert set(result) == {*AT_LEAST, "pss_mb"}
    assert set(result.values()) == {reached}


def test_file_holds_ratios_and_what_they_are_made_of() -> None:
    result = json.loads(json.dumps(table.to_dict(found(2.0), {"cores": 2}, 12.34)))
    for key, least in AT_LEAST.items():
        assert result[key] == pytest.approx(least * 2)
        assert set(result["medians"][key]) == {"docker-py", "shoal"}
        assert set(result["samples"][key]["shoal"]) == {"unit", "n", "min", "median", "p95", "max"}
    assert set(result["measures"]) == {*AT_LEAST, "pss_mb"}
    assert result["pss_mb"] == 30.0
    assert result["idle_sandbox"]["shoal"]["processes"] == 3
    assert result["machine"] == {"cores": 2}
    assert result["seconds"] == 12.3
