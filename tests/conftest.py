"""Fixtures of every test, and the order in which tests run."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.cluster import both_ways, cluster, engine, http_client, machine, no_leaks
from tests.postgres import postgres

__all__ = [
    "anyio_backend",
    "both_ways",
    "cluster",
    "engine",
    "http_client",
    "machine",
    "no_leaks",
    "postgres",
]

ROOT = Path(__file__).parent
ORDER = ("unit", "contract", "integration", "chaos")
SETUP_S = 1200
"""For a test that happens to be the first to need what is then there for all: on a new machine programs are installed, and an image built."""


def pytest_configure(config: pytest.Config) -> None:
    """A shell's background jobs ignore interrupts, and hand that on to all they start; some tests are about interrupts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.hookimpl(trylast=True)  # of what is left by `-m` and `-k`
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is quick comes first, and what starts a Ray of its own before this process joins the session's cluster."""
    items.sort(key=lambda item: _rank(item.path))
    on_engine = [item for item in items if item.get_closest_marker("engine") is not None]
    on_cluster = [item for item in on_engine if "cluster" in getattr(item, "fixturenames", ())]
    on_postgres = [item for item in items if "postgres" in getattr(item, "fixturenames", ())]
    for first in (*on_engine[:1], *on_cluster[:1], *on_postgres[:1]):
        first.add_marker(pytest.mark.timeout(SETUP_S), append=False)


def _rank(path: Path) -> int:
    part = path.relative_to(ROOT).parts[0]
    return ORDER.index(part) if part in ORDER else len(ORDER)


@pytest.fixture
def anyio_backend() -> str:
    """Async tests run on asyncio: Ray's own loop."""
    return "asyncio"
