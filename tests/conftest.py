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


def pytest_configure(config: pytest.Config) -> None:
    """A shell's background jobs ignore interrupts, and hand that on to all they start; some tests are about interrupts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is quick comes first, and what starts a Ray of its own before this process joins the session's cluster."""
    items.sort(key=lambda item: _rank(item.path))


def _rank(path: Path) -> int:
    part = path.relative_to(ROOT).parts[0]
    return ORDER.index(part) if part in ORDER else len(ORDER)


@pytest.fixture
def anyio_backend() -> str:
    """Async tests run on asyncio: Ray's own loop."""
    return "asyncio"
