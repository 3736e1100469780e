"""The table that `make test-long` ends with: what was killed under load, and what that lost, doubled or leaked."""

from __future__ import annotations

import pytest
from rich.console import Console
from rich.table import Table

from tests.chaos.accounts import Tally

TALLIES = pytest.StashKey[list[Tally]]()


@pytest.fixture
def tallies(pytestconfig: pytest.Config) -> list[Tally]:
    """Where the tests put what they counted."""
    return pytestconfig.stash.setdefault(TALLIES, [])


def pytest_terminal_summary(config: pytest.Config) -> None:
    found = config.stash.get(TALLIES, [])
    if not found:
        return
    table = Table(title="Killed under a load of creates and execs over HTTP", title_justify="left")
    headings = (
        "killed",
        "kills",
        "creates",
        "lost",
        "doubled",
        "execs",
        "lost",
        "doubled",
        "ended",
        "leaked",
        "again",
        "slowest",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "killed" else "right", no_wrap=True)
    for one in found:
        numbers = (
            one.kills,
            one.creates,
            one.creates_lost,
            one.creates_doubled,
            one.execs,
            one.execs_lost,
            one.execs_doubled,
            one.ended,
            one.leaked,
            one.retried,
        )
        table.add_row(one.killed, *map(str, numbers), f"{one.slowest_s:.1f} s")
    Console(width=140).print(table)
