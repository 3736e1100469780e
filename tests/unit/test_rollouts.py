"""The demo's parts that need no cluster: the policy, the judge, the report."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

import shoal
from examples.rollouts.evaluate import Outcome, Trial, judge
from examples.rollouts.mutate import Candidate, Patch, all_patches, propose
from examples.rollouts.package import FetchError, fetch
from examples.rollouts.report import Live, percentile, print_report
from shoal import Result

SOURCE = '''\
def clip(value, low=0, strict=False):
    """Text with 1 < 2 in it, ä and ß."""
    if not strict and value is not None:
        return max(low, value) if "ä" in f"{value + 1}" else (low)
    while (value) <= 2 ** low:
        value = value * 2 + (low - 1)
    return (
        value
    )
'''


def result(returncode: int, stderr: str, *, timed_out: bool = False) -> Result[str]:
    return Result(returncode=returncode, stdout="", stderr=stderr, duration=1.0, timed_out=timed_out, truncated=False)


def outcome(number: int, reward: int, seconds: float) -> Outcome:
    patch = None if number == 0 else Patch(number, 0, "[", "]")
    trial = Trial(reward, "as told", seconds, seconds - 0.004)
    return shoal.Outcome(
        number, Candidate(number, patch, SOURCE), trial, None, 1, seconds + 0.010 * (number + 1), "sb-1"
    )


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What people tell rich of their own terminals is not of those here."""
    monkeypatch.setenv("TERM", "xterm")
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def test_patches_are_those_expected() -> None:
    found = {(patch.line, patch.old, patch.new) for patch in all_patches(SOURCE)}
    assert found == {
        (1, "0", "1"),
        (1, "False", "True"),
        (3, "not ", ""),
        (3, "and", "or"),
        (3, "is not", "is"),
        (4, "in", "not in"),
        (4, 'max(low, value) if "ä" in f"{value + 1}" else (low)', "None"),
        (5, "<=", "<"),
        (5, "2", "3"),
        (6, "*", "//"),
        (6, "+", "-"),
        (6, "-", "+"),
        (6, "2", "3"),
        (6, "1", "2"),
    }


def test_every_patch_gives_another_module_that_compiles() -> None:
    texts = [patch.apply(SOURCE) for patch in all_patches(SOURCE)]
    for text in texts:
        compile(text, "module", "exec")
    assert len({*texts, SOURCE}) == len(texts) + 1


def test_patch_refuses_another_text() -> None:
    with pytest.raises(ValueError, match="line 1 does not hold"):
        Patch(1, 0, "<", "<=").apply("value = 1\n")


# How long it takes is a matter of the machine, and whether that stands still for a moment.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(count=st.integers(1, 15), seed=st.integers())
def test_proposals_are_different_and_repeatable(count: int, seed: int) -> None:
    candidates = propose(SOURCE, count, seed)
    assert candidates == propose(SOURCE, count, seed)
    assert [candidate.number for candidate in candidates] == list(range(count))
    assert candidates[0].patch is None
    assert candidates[0].source == SOURCE
    assert len({candidate.source for candidate in candidates}) == count


@pytest.mark.parametrize("count", [-1, 0, 16])
def test_too_many_or_no_candidates_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"candidates: {count} is out of range; this module gives 1 to 15"):
        propose(SOURCE, count, seed=0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (result(0, "Ran 817 tests in 1.4s\n\nOK (skipped=1)\n"), (1, "817 passed")),
        (result(1, "Ran 10 tests in 1s\n\nFAILED (failures=1, errors=2, skipped=4)\n"), (0, "3 of 10 failed")),
        (result(1, "failures=9\nRan 4 tests in 1s\n\nFAILED (errors=1)\n"), (0, "1 of 4 failed")),
        (result(1, "SyntaxError: invalid syntax\n"), (0, "no test ran")),
        (result(0, "Ran 0 tests in 0.000s\n\nOK\n"), (0, "no test ran")),
        (result(0, ""), (0, "no test ran")),
        (result(-9, "Ran 4 tests in 1s\n\nOK\n"), (0, "killed by signal 9")),
        (result(-9, "", timed_out=True), (0, "timed out")),
    ],
)
def test_judge(given: Result[str], expected: tuple[int, str]) -> None:
    assert judge(given) == expected


@pytest.mark.parametrize(("q", "expected"), [(0, 1.0), (50, 2.0), (51, 3.0), (95, 4.0), (100, 4.0)])
def test_percentile(q: float, expected: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], q) == expected
    assert percentile([], q) == 0.0


@pytest.mark.usefixtures("plain_environment")
def test_report_without_a_terminal_tells_every_outcome_once() -> None:
    written = io.StringIO()
    console = Console(file=written, width=120)
    live = Live(console, total=2)
    outcomes = [outcome(1, 0, 2.0), outcome(0, 1, 4.0)]
    with live.running():
        for each in outcomes:
            live.show(each)
    print_report(console, outcomes, wall=4.0)
    text = written.getvalue()
    assert "[1/2] candidate 1: reward 0 (as told)" in text
    assert "[2/2] candidate 0: reward 1 (as told)" in text
    assert "line 1: [ → ]" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["│", "rollout", "│", "2", "│", "0.5", "│", "2020.0", "ms", "│", "4010.0", "ms", "│"] in rows
    assert ["│", "exec", "│", "2", "│", "0.5", "│", "2000.0", "ms", "│", "4000.0", "ms", "│"] in rows
    assert ["│", "exec", "less", "the", "tests", "│", "2", "│", "0.5", "│", "4.0", "ms", "│", "4.0", "ms", "│"] in rows
    assert "2 rollouts in 4.0 s; 1 earned reward 1." in text
    assert "\x1b" not in text


@pytest.mark.usefixtures("plain_environment")
def test_bar_on_a_terminal_counts() -> None:
    written = io.StringIO()
    live = Live(Console(file=written, width=100, force_terminal=True), total=2)
    with live.running():
        live.show(outcome(0, 1, 1.0))
        live.show(outcome(1, 0, 1.0))
    assert "1 of 2 passed" in written.getvalue()
    assert "2/2" in written.getvalue()


def test_package_that_cannot_be_had_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(FetchError, match="No matching distribution found for more-itertools"):
        fetch(tmp_path)
