"""The measures that there are, what each must reach, and in which order they are taken: one list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.bench import creates, execs, files, memory, shoalpy
from tests.bench.memory import Cost
from tests.bench.quiet import wait_quiet
from tests.bench.shoalpy import Shoal
from tests.bench.stats import Samples
from tests.bench.subject import Subject

AT_LEAST: dict[str, float] = {
    "exec_p50": 25,
    "exec_rate_1": 40,
    "exec_rate_8": 25,
    "create_cold": 0.8,
    "create_warm": 10,
    "create_rate": 0.9,
    "file_write": 2,
    "file_read": 2,
}
"""How many times better than docker-py, by measure."""

PSS_AT_MOST = 60.0  # MB per idle sandbox


@dataclass(frozen=True, slots=True)
class Measured:
    """One measure: its samples by the subject's name."""

    key: str
    what: str
    by: dict[str, Samples]


@dataclass(frozen=True, slots=True)
class Measurements:
    """All of a run. `idle` is what one idle sandbox costs, by the subject's name."""

    measured: tuple[Measured, ...]
    idle: dict[str, Cost]


def measure_all(
    shoal: Shoal, docker_py: Subject, ours: Callable[[], set[int]], say: Callable[[str], None]
) -> Measurements:
    """Takes every measure, one group after the other; `say` is told what comes next. `ours`: the processes that count for memory."""
    subjects: list[Subject] = [docker_py, shoal]
    done: list[Measured] = []

    def add(key: str, what: str, by: dict[str, Samples]) -> None:
        done.append(Measured(key, what, by))

    # First: later there are idle slots left from what was measured before, and a sandbox that takes one of these adds too little.
    say("memory of idle sandboxes")
    idle = {subject.name: memory.per_sandbox(subject, ours) for subject in (shoal, docker_py)}

    say("execs, one after the other")
    latency = execs.latency(subjects)
    add("exec_p50", "exec, one caller", latency)
    add("exec_p50_aio", "the same, async", {**latency, shoal.name: shoalpy.latency_aio(shoal)})

    for count in (1, 8):
        say(f"execs, {execs.CALLERS} callers, {count} sandbox{'es' if count > 1 else ''}")
        rates = execs.rate(subjects, count)
        add(f"exec_rate_{count}", f"execs, {execs.CALLERS} callers, {count} sandbox{'es' if count > 1 else ''}", rates)
        add(f"exec_rate_{count}_aio", "the same, async", {**rates, shoal.name: shoalpy.rate_aio(shoal, count)})

    say("files of 10 MiB")
    writes, reads = files.write_and_read(subjects)
    add("file_write", "write 10 MiB", writes)
    add("file_read", "read 10 MiB", reads)

    say("creates, cold")
    cold = creates.cold(subjects, wait_quiet)
    add("create_cold", "create to first exec, cold", cold)

    say("creates, warm")

    def ready() -> None:
        wait_quiet()
        shoal.wait_warm()

    add("create_warm", "create to first exec, warm", {**cold, shoal.name: creates.warm(shoal, ready)})

    say(f"creates, {creates.RATE_CALLERS} callers")
    add(
        "create_rate",
        f"{creates.RATE_CREATES} creates, {creates.RATE_CALLERS} callers",
        creates.rate(subjects, wait_quiet),
    )
    return Measurements(tuple(done), idle)


def measure_peer(peer: Subject, found: Measurements, say: Callable[[str], None]) -> Measurements:
    """What a peer reaches in the measures that it shares, beside what was `found`. Where it gives up it keeps what it has reached."""
    reached: dict[str, Samples] = {}
    try:
        reached["exec_p50"] = execs.latency([peer])[peer.name]
        for count in (1, 8):
            reached[f"exec_rate_{count}"] = execs.rate([peer], count)[peer.name]
        writes, reads = files.write_and_read([peer])
        reached["file_write"], reached["file_read"] = writes[peer.name], reads[peer.name]
        reached["create_cold"] = creates.cold([peer], wait_quiet)[peer.name]
        reached["create_rate"] = creates.rate([peer], wait_quiet)[peer.name]
    except Exception as error:  # noqa: BLE001  # a peer's trouble, whatever its kind, is not the bench's
        say(f"{peer.name} gave up: {type(error).__name__}: {str(error)[:200]}")
    measured = [
        replace(each, by={**each.by, peer.name: reached[each.key]}) if each.key in reached else each
        for each in found.measured
    ]
    return replace(found, measured=tuple(measured))
