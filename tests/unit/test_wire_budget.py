"""Memory for outputs, shared."""

from __future__ import annotations

import pytest

from shoal.model.errors import Unavailable
from shoal.wire.budget import UNCOUNTED, Budget, Share


class Output:
    """One that grows when it is told to."""

    def __init__(self, budget: Budget) -> None:
        self.share: Share = budget.share()
        self.error: Unavailable | None = None

    def grow(self, count: int) -> None:
        self.share.add(count, self)

    def give_up(self, error: Unavailable) -> None:
        self.error = error


@pytest.fixture
def budget() -> Budget:
    return Budget(10 * UNCOUNTED)


def test_short_outputs_count_for_nothing(budget: Budget) -> None:
    for _ in range(100):
        Output(budget).grow(UNCOUNTED)
    assert budget.held == 0


def test_what_exceeds_counts_whole_and_comes_back(budget: Budget) -> None:
    output = Output(budget)
    output.grow(UNCOUNTED)
    output.grow(1)
    assert budget.held == UNCOUNTED + 1
    output.share.release()
    output.share.release()
    assert budget.held == 0
    output.grow(UNCOUNTED)  # its call was made again
    assert budget.held == 0


def test_the_largest_stands_back(budget: Budget) -> None:
    large, small = Output(budget), Output(budget)
    large.grow(8 * UNCOUNTED)
    small.grow(2 * UNCOUNTED)
    assert large.error is None
    small.grow(1)
    assert large.error is not None
    assert not large.error.retryable
    assert small.error is None
    assert budget.held == small.share.size == 2 * UNCOUNTED + 1


def test_one_alone_gets_no_more_than_all(budget: Budget) -> None:
    output = Output(budget)
    output.grow(11 * UNCOUNTED)
    assert output.error is not None
    assert budget.held == 0


def test_what_is_whole_is_not_given_up(budget: Budget) -> None:
    whole, late = Output(budget), Output(budget)
    whole.grow(9 * UNCOUNTED)
    whole.share.settle()
    late.grow(2 * UNCOUNTED)
    assert whole.error is None
    assert late.error is not None
    assert budget.held == 9 * UNCOUNTED
