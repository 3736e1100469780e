"""`shoal.reward`: which scores count, what the others become, and that hostile output does no harm."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import shoal
from shoal.client.rollouts.reward import MAX_LINE, score_in
from tests.unit.client_lab import ClientLab


@pytest.fixture
def lab() -> ClientLab:
    return ClientLab()


@pytest.mark.parametrize(
    ("text", "score", "details"),
    [
        ("0.5", 0.5, {}),
        ("-3\n", -3.0, {}),
        ("1e-05 \n \n\n", 1e-05, {}),
        ("12 of 12 passed\nloss: 3\n0.25\n", 0.25, {}),
        ('{"score": 1, "passed": 3}', 1.0, {"score": 1, "passed": 3}),
    ],
)
def test_scores(text: str, score: float, details: dict[str, Any]) -> None:
    assert score_in(text, "score") == (score, details)


@pytest.mark.parametrize(
    "text",
    [
        *("", "\n", "NaN", "Infinity", "-Infinity", "1e999", "true", "null", '"1"', "[1]", "1 2", "0x1", "1_0", "٣"),
        *('{"points": 1}', '{"score": true}', '{"score": "1"}', '{"score": NaN}', "0.5\nTraceback"),
        *("9" * 400, "9" * 5000, "[" * 100_000, '{"score":' * 20_000, "1" + " " * MAX_LINE + "1"),
        '{"score": 1, "x": "' + "x" * MAX_LINE + '"}',
    ],
)
def test_what_is_no_score(text: str) -> None:
    assert score_in(text, "score") is None


@given(
    st.one_of(st.text(), st.recursive(st.none() | st.floats() | st.integers() | st.text(), st.lists).map(json.dumps))
)
def test_any_text_is_a_finite_score_or_none(text: str) -> None:
    found = score_in(text, "score")
    assert found is None or math.isfinite(found[0])


def test_a_command_earns_its_score(lab: ClientLab) -> None:
    with lab.sandbox() as sandbox:
        earned = shoal.reward(sandbox, ["echo", '{"points": 3}'], key="points")
        assert (float(earned), earned.details, earned.why) == (3.0, {"points": 3}, None)
        assert earned.result is not None
        assert earned.result.returncode == 0
        assert shoal.reward(sandbox, "true", read="exit_code").score == 1.0
        assert shoal.reward(sandbox, "false", read="exit_code").score == 0.0
        assert shoal.reward(sandbox, "echo 2", bounds=(0, 2)).score == 2.0


@pytest.mark.parametrize(
    ("command", "options", "error", "why"),
    [
        ("false", {}, shoal.CommandFailed, "exit code 1"),
        ("true", {}, shoal.NoScore, "no score"),
        ("echo good", {}, shoal.NoScore, "no score"),
        ("echo 2", {"bounds": (0, 1)}, shoal.NoScore, "no score"),
        ("sleep 60", {"timeout": 0.05}, shoal.DeadlineExceeded, "timeout"),
        ("sleep 60", {"timeout": 0.05, "read": "exit_code"}, shoal.DeadlineExceeded, "timeout"),
    ],
)
def test_without_a_score_it_raises_or_has_the_floor(
    lab: ClientLab, command: str, options: Any, error: type[shoal.ShoalError], why: str
) -> None:
    with lab.sandbox() as sandbox:
        with pytest.raises(error):
            shoal.reward(sandbox, command, **options)
        floored = shoal.reward(sandbox, command, floor=-1, **options)
        assert (floored.score, floored.why) == (-1.0, why)


@pytest.mark.parametrize("reason", ["out_of_memory", "timeout", "node_lost"])
def test_an_end_that_is_the_commands_doing_has_the_floor(lab: ClientLab, reason: str) -> None:
    sandbox = lab.sandbox()
    lab.fake.fail_next("run", shoal.SandboxEnded("it ended", reason=reason))
    if reason == "node_lost":
        with pytest.raises(shoal.SandboxEnded):
            shoal.reward(sandbox, "echo 1", floor=0)
    else:
        assert shoal.reward(sandbox, "echo 1", floor=0) == shoal.Reward(0, why=reason)


def test_what_is_not_the_commands_doing_raises(lab: ClientLab) -> None:
    with lab.sandbox() as sandbox, pytest.raises(shoal.CommandNotFound):
        shoal.reward(sandbox, ["no-such-program"], floor=0)


@pytest.mark.parametrize(
    ("field", "value"), [("read", "stdout"), ("floor", "0"), ("floor", math.inf), ("bounds", 1), ("bounds", (1, 0))]
)
def test_wrong_arguments(lab: ClientLab, field: str, value: Any) -> None:
    with lab.sandbox() as sandbox:
        with pytest.raises(shoal.InvalidRequest) as caught:
            shoal.reward(sandbox, "echo 1", **{field: value})
        assert caught.value.field == field
